"""Publishing a build to a Hugging Face model repository, and fetching one back, checked."""
