"""What `accelerate launch` runs in test_unlearning_processes.py: FOLDER, and JSON of name -> settings of `unlearn`, one after the other.

The settings "breaks" name a process whose third step fails.
"""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import editkit
from editkit.unlearning.step import Stepper

taken = Stepper.take


def failing(self, step, batches):
    if step == 2:
        raise editkit.EditError("this process has had enough")
    return taken(self, step, batches)


def say(text):
    sys.stdout.write(f"process {os.environ['RANK']}: {text}\n")  # at once: print may write the end of a line by itself
    sys.stdout.flush()


@contextmanager
def stage(name):
    say(f"stage {name}")
    yield None


def main(folder, runs):
    for name, settings in runs.items():
        if settings.pop("breaks", None) == os.environ["RANK"]:
            Stepper.take = failing
        try:
            report = editkit.unlearn(
                folder / "model", folder / name, stage=stage, observe=lambda line: say("observed"), **settings
            )
        except editkit.EditError as error:
            say(f"failed, {error}")
            sys.exit(error.exit_code)
        say(f"ended {name} with {'a report' if report else 'nothing'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
