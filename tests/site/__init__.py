"""A host project, as small as the end-to-end tests allow."""  # noqa: A005
