"""lm-evaluation-harness's own command with our model in it: `python -m pipeline.evaluation run --model block_diffusion
--model_args pretrained=FOLDER,preset=fast --include_path pipeline/evaluation/tasks --tasks ...`.

The same as `lm_eval`, but for the registration of `block_diffusion`.
"""

from lm_eval.__main__ import cli_evaluate

from pipeline.evaluation import lm_eval_model  # noqa: F401  importing it registers the model

if __name__ == "__main__":
    cli_evaluate()
