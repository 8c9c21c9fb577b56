from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class ModuleStorage(ManifestStaticFilesStorage):
    """Modules import each other by names with a hash, too: no page mixes two versions."""

    support_js_module_import_aggregation = True
    max_post_process_passes = 20  # modules import modules, several deep
