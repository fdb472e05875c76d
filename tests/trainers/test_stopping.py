"""The end of a run before its last step: nothing gets better on held-out examples, or the loss is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.trainers.errors import TrainerError
from tests.trainers.tiny import ConfigMaker, run_here


def test_a_run_that_gets_no_better_stops_and_delivers_its_best(tmp_path: Path, train_config: ConfigMaker) -> None:
    # A rate that overshoots: the first evaluations are the best ones.
    config = train_config(tmp_path / "run", learning_rate=0.05, num_epochs=30, early_stopping_patience=2, eval_steps=4)
    events = run_here(config)
    complete = events.of("complete")[0]
    stopped = events.of("stopped")[0]
    assert complete["stopped"] == "early"
    assert complete["steps"] == stopped["step"] < 120
    assert "early_stopping_patience" in stopped["message"]
    scores = {item["step"]: item["eval_loss"] for item in events.of("eval") if item["step"] > 0}
    assert complete["kept_step"] == min(scores, key=scores.__getitem__)
    assert complete["eval_loss_tuned"] == min(scores.values())
    lowest = list(scores.values()).index(min(scores.values()))
    assert len(scores) - 1 - lowest == 2, "after two evaluations that were no better"


def test_a_run_that_is_killed_after_its_early_stop_trains_no_further(
    tmp_path: Path, train_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.trainers import qlora

    class Killed(BaseException):
        """Passes every `except Exception`, as a kill does."""

    def die(*_: object) -> None:
        raise Killed

    config = train_config(tmp_path / "run", learning_rate=0.05, num_epochs=30, early_stopping_patience=2, eval_steps=4)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(qlora, "choose_weights", die)
        run_here(config)
    saved = max(int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "run").glob("checkpoint-*"))
    events = run_here(config)
    complete = events.of("complete")[0]
    assert (complete["stopped"], complete["steps"]) == ("early", saved)
    assert complete["kept_step"] == saved - 2 * 4
    assert complete["final_train_loss"] > 0
    assert not [item for item in events.of("log") if item["step"] > saved]


@pytest.mark.parametrize("patience", [0, None])
def test_early_stopping_can_be_switched_off(tmp_path: Path, train_config: ConfigMaker, patience: int | None) -> None:
    config = train_config(
        tmp_path / "run", learning_rate=0.05, num_epochs=8, early_stopping_patience=patience, eval_steps=2
    )
    complete = run_here(config).of("complete")[0]
    assert (complete["stopped"], complete["steps"]) == ("finished", 32)


def test_a_resumed_run_remembers_how_long_nothing_got_better(tmp_path: Path, train_config: ConfigMaker) -> None:
    from backend.trainers import building, checkpoints, memory
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation
    from tests.trainers.tiny import Recorder

    config = parse_config(TrainConfig, train_config(tmp_path / "run", early_stopping_patience=4, num_epochs=2))
    events = Events(Recorder())  # type: ignore[arg-type]

    def build() -> building.ResumableTrainer:
        prepared = building.prepare(config, events, memory.Parts())
        return prepared.trainer(config, events, Cancellation(), memory.Parts())

    trainer = build()
    trainer.evaluations_since_lowest, trainer.lowest_loss = 2, 0.001
    trainer.train()  # type: ignore[attr-defined]
    assert trainer.evaluations_since_lowest == 4
    saved = checkpoints.newest_whole(config.run_dir)
    again = build()
    again.create_optimizer_and_scheduler(8)  # type: ignore[attr-defined]
    again._load_optimizer_and_scheduler(str(saved))
    assert (again.lowest_loss, again.evaluations_since_lowest) == (0.001, 4)


def test_the_alarm_rises_for_loss_that_stays_far_above_all_before() -> None:
    from backend.trainers.reporting import LossWatch

    def first_alarm(losses: list[float]) -> int | None:
        watch = LossWatch()
        return next((number for number, loss in enumerate(losses, 1) if watch.diverged(loss)), None)

    falling = [2.4 * 0.9**step for step in range(30)]
    assert first_alarm(falling) is None
    assert first_alarm([*falling, 9.0, 9.0, 9.0, 9.0, 9.0]) == 35
    assert first_alarm([*falling, 9.0, 9.0, 0.1, 9.0, 9.0, 9.0, 0.1]) is None, "it came back"
    assert first_alarm([*falling, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]) is None, "small losses go up and down"
    assert first_alarm([2.4, 8.0, 8.0, 8.0, 8.0, 8.0]) == 6, "from the first step on"
    assert first_alarm([2.8, 7.9, 8.1, *[7.6] * 9]) == 11, "it stands still at a loss within three times the first"
    assert first_alarm([2.8, *[7.6] * 9, 3.0, *[7.6] * 9]) is None, "it came back"
    assert first_alarm([0.2, *[0.5] * 30]) is None, "small losses go up and down"
    assert first_alarm([2.4, float("nan")]) == 2
    assert first_alarm([2.4, float("inf")]) == 2


def test_one_easy_example_at_the_beginning_raises_no_alarm() -> None:
    """Steps of one example: the first report says nothing of what the others' losses are."""
    from backend.trainers.reporting import LossWatch

    easy_first = [0.2, *[1.4, 1.1, 1.6, 1.2, 1.5] * 6]
    for base_loss in (None, 1.3):
        watch = LossWatch(base_loss=base_loss, step_size=1)
        assert not any(watch.diverged(loss) for loss in easy_first), base_loss
        assert [watch.diverged(9.0) for _ in range(5)] == [False] * 4 + [True], "it still hears an explosion"
    still = LossWatch(base_loss=2.8, step_size=1)
    assert [still.diverged(loss) for loss in (3.0, *[7.6] * 10)] == [False] * 10 + [True]


def test_the_first_batch_alone_says_little_where_the_base_models_loss_is_known() -> None:
    from backend.trainers.reporting import LossWatch

    losses = [1.0, *[1.9] * 30]
    for base_loss, expected in ((None, True), (2.0, False)):
        watch = LossWatch(base_loss=base_loss)
        assert any(watch.diverged(loss) for loss in losses) is expected


def test_a_ruined_model_is_noticed(tmp_path: Path, train_config: ConfigMaker, fluent_model: Path) -> None:
    """By a rate of 30, which ruins it in a few steps."""
    config = train_config(tmp_path / "run", {"base_model": str(fluent_model)}, learning_rate=30.0, num_epochs=20)
    with pytest.raises(TrainerError) as caught:
        run_here(config)
    assert caught.value.code == "TRAINING_DIVERGED"
    assert "exploded" in str(caught.value)


def test_an_exploding_loss_stops_the_run_with_its_reason(tmp_path: Path, train_config: ConfigMaker) -> None:
    fields = {"eval_file": None, "method": "full"}
    config = train_config(tmp_path / "run", fields, learning_rate=1.0, warmup_ratio=0.0, num_epochs=20)
    with pytest.raises(TrainerError) as caught:
        run_here(config)
    assert caught.value.code == "TRAINING_DIVERGED"
    assert "exploded" in str(caught.value)
    assert "learning_rate" in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_the_curve_of_an_interrupted_run_has_no_jump(tmp_path: Path, train_config: ConfigMaker) -> None:
    """Cancelled by the trainer's own means in mid-epoch, then gone on with: the losses are those of one run."""
    from backend.trainers import qlora
    from backend.trainers.config import TrainConfig, parse_config
    from backend.trainers.errors import Cancelled
    from backend.trainers.events import Events
    from backend.trainers.process import Cancellation
    from tests.trainers.tiny import Recorder

    class StopsAtStep:
        """A reader that asks to stop, as SIGTERM would, when it sees step 5."""

        def __init__(self, cancellation: Cancellation) -> None:
            self.cancellation = cancellation
            self.recorder = Recorder()

        def write(self, text: str) -> int:
            event = json.loads(text)
            if event["event"] == "log" and event["step"] == 5:
                self.cancellation.signal_number = 15
            return self.recorder.write(text)

        def flush(self) -> None:
            """Nothing is buffered."""

    config = train_config(tmp_path / "run", num_epochs=3)
    cancellation = Cancellation()
    reader = StopsAtStep(cancellation)
    with pytest.raises(Cancelled):
        qlora.fine_tune(parse_config(TrainConfig, config), Events(reader), cancellation)  # type: ignore[arg-type]
    before = {item["step"]: item["train_loss"] for item in reader.recorder.of("log")}
    after = {item["step"]: item["train_loss"] for item in run_here(config).of("log")}
    straight = run_here(train_config(tmp_path / "straight", num_epochs=3)).of("log")
    assert min(after) == max(before) + 1
    assert {**before, **after} == {item["step"]: item["train_loss"] for item in straight}
