"""Files that exports carry as they are: they import torch and transformers and nothing of ours."""
