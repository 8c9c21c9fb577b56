"""What projects that build on this one test their own parts with."""
