"""The records of the benchmark's data sets and of the simulated arms.

Sources: arXiv 2604.11689, section 3 and appendix (tracks, splits, licences) and the published metadata tables.
The class names are in ``tables/action_categories.csv``.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

from lary.data.spec import (
    ActionSpace,
    DatasetSpec,
    Draw,
    LabelSpace,
    Licence,
    Normalisation,
    Orientation,
    Split,
    register_dataset,
)

CITATION = """@misc{nie2026larylatentactionrepresentation,
  title={LARY: A Latent Action Representation Yielding Benchmark for Generalizable Vision-to-Action Alignment},
  author={Dujun Nie and Fengjiao Chen and Qi Lv and Jun Kuang and Xiaoyu Li and Xuezhi Cao and Xunliang Cai},
  year={2026},
  eprint={2604.11689},
  archivePrefix={arXiv},
  primaryClass={cs.CV},
  url={https://arxiv.org/abs/2604.11689},
}"""

# The day on which the published data sets were opened in full; the owner is the same on Hugging Face and ModelScope.
published = partial(
    DatasetSpec, revision="2026-04-27", repository="meituan-longcat/LARYBench", citation=CITATION
)  # fmt: skip

EPISODE = r"^(.*?ep_[^/]+)/"
"""Group of a pair: its episode folder, with the task folder before it where there is one."""

CLIP = r"^((?:SSv2|EgoDex)/(?:[^/]+/)*\d+(?=_\d+(?:_rev)?\.[^./]+$)|.+?(?=(?:_rev)?\.[^./]+$))"
"""Group of a clip: its path without ``_rev`` and extension, so that a clip and its reversal stay together.

SSv2 and EgoDex clips are named ``<row of the seed table>_<line>``: clips of one row come from one video.
"""

MIT = "MIT"


def drawn(by: str, pattern: str | None = None) -> dict[str, Draw]:
    """The published training and validation rows split anew, 75:25 by whole groups of the kind `by`."""
    return {
        f"{part}_by_{by}": Draw(("train", "val"), validates=part == "val", pattern=pattern) for part in ("train", "val")
    }


def class_names(dataset: str) -> tuple[str, ...]:
    """Sorted class names of a data set, from the table that ships with the package."""
    with (Path(__file__).parent / "tables" / "action_categories.csv").open(encoding="utf-8", newline="") as file:
        return tuple(sorted(row["action"] for row in csv.DictReader(file) if row["dataset"] == dataset))


# Classification

AGIBOT = Licence("AgiBotWorld-Beta", "CC BY-NC-SA 4.0", False, "https://github.com/OpenDriveLab/AgiBot-World")

register_dataset(
    published(
        name="libero",
        title="Atomic Robot",
        samples=25_940,
        media="pair",
        target=LabelSpace(class_names("libero")),
        splits={"train": Split("classification/LIBERO"), "val": Split("classification/LIBERO")},
        licences=(Licence("LIBERO", MIT, True, "https://github.com/Lifelong-Robot-Learning/LIBERO"),),
        drawn={**drawn("episode"), **drawn("segment", r"^(.*)/")},
        group_pattern=r"^(.*?/demo_[^/]+)/",
        description=(
            "25,940 image pairs, 28 kinematic primitives; start and end of a segment in both orders, the other order "
            "with the inverse label. The published split is by row."
        ),
    )
)

register_dataset(
    published(
        name="human_1st",
        title="Composite Human",
        samples=652_297,
        media="clip",
        target=LabelSpace(class_names("human_1st")),
        splits={"train": Split("classification"), "val": Split("classification")},
        licences=(
            Licence("EPIC-KITCHENS", "CC BY-NC 4.0", False, "https://epic-kitchens.github.io"),
            Licence("TACO", "CC BY 4.0", True, "https://taco2024.github.io"),
            Licence("Ego4D", MIT, True, "https://github.com/facebookresearch/Ego4d"),
            Licence("HoloAssist", MIT, True, "https://holoassist.github.io"),
            Licence("EgoDex", "terms of the source, not redistributed", False, "https://github.com/apple/ml-egodex"),
            Licence(
                "Something-Something V2",
                "terms of the source, not redistributed",
                False,
                "https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
            ),
        ),
        group_pattern=CLIP,
        integrity_group="Human_1st",
        description="652,297 clips of people seen from their own eyes, 123 verbs.",
    )
)

register_dataset(
    published(
        name="robot_1st",
        title="Composite Robot",
        samples=538_423,
        media="clip",
        target=LabelSpace(class_names("robot_1st")),
        splits={"train": Split("classification"), "val": Split("classification")},
        licences=(AGIBOT,),
        group_pattern=CLIP,
        integrity_group="Robot_1st",
        description="538,423 clips from the head camera of a two-armed robot, 54 verbs.",
    )
)

# Regression

EULER_ARM = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def euler_arm(horizon: int, rule: Normalisation, *, grouped: bool = True) -> ActionSpace:
    """The actions of one arm: position, orientation about the fixed axes, and gripper."""
    return ActionSpace(
        dims=EULER_ARM,
        horizon=horizon,
        normalisation=rule,
        groups={"position": (0, 1, 2), "orientation": (3, 4, 5), "gripper": (6,)} if grouped else {},
        units=("m", "m", "m", "rad", "rad", "rad", ""),
        orientations=(Orientation("arm", (3, 4, 5), "euler_xyz"),),
    )


def prepare_command(dataset: str, train: str = "train") -> str:
    """The command that makes relative actions and their statistics, as the benchmark's description has it."""
    return (
        f"python utils/prepare_relative_actions.py --dataset {dataset} --input-root $DATA_DIR "
        f"--output-root $DATA_DIR --csv data/{dataset}_metadata_{train}.csv"
    )


register_dataset(
    published(
        name="calvin",
        title="CALVIN",
        samples=209_921,
        media="pair",
        stride=5,
        target=euler_arm(
            5,
            Normalisation(
                mean=(0.03993005, -0.1113833, 0.50033228, 1.04580053, -0.08165425, 1.58390577, -0.08441296),
                std=(0.14403107, 0.09919957, 0.05518382, 2.89455128, 0.13053949, 0.57474015, 0.99643086),
                relative_command=prepare_command("calvin"),
            ),
        ),
        splits={"train": Split("regression/calvin/train_stride5"), "val": Split("regression/calvin/val_stride5")},
        licences=(Licence("CALVIN", MIT, True, "https://github.com/mees/calvin"),),
        group_pattern=EPISODE,
        media_depth=0,
        integrity_group="CALVIN",
        description="209,921 pairs of a simulated arm; scenes A, B and C train, scene D validates.",
    )
)

for name, title, stride, group, count in (
    ("vlabench", "VLABench", 5, "VLABench", 112_030),
    ("vlabench_15", "VLABench, stride 15", 15, "", None),
    ("vlabench_30", "VLABench, stride 30", 30, "", 16_728),
):
    register_dataset(
        published(
            name=name,
            title=title,
            samples=count,
            media="pair",
            stride=stride,
            stride_series="VLABench",
            # No groups: the published results of these keys have single dimensions only.
            target=euler_arm(
                stride,
                Normalisation(
                    mean=(0.02959172, 0.39965126, 0.25788001, 1.0136418, -0.38189239, -0.13961033, 0.54842541),
                    std=(0.15966601, 0.13813421, 0.1362726, 2.70449661, 0.63210694, 1.72885403, 0.49764945),
                    relative_command=prepare_command(name),
                ),
                grouped=False,
            ),
            splits={"train": Split("regression/vlabench"), "val": Split("regression/vlabench")},
            drawn=drawn("episode"),
            licences=(Licence("VLABench", MIT, True, "https://github.com/OpenMOSS/VLABench"),),
            group_pattern=EPISODE,
            media_depth=0,
            # A cleaning step took the text "_<stride>/" out of the paths of episode <stride>.
            path_repair=(r"\bep(frame|state|action)_", rf"ep_{stride}/\1_"),
            integrity_group=group,
            description=f"Pairs {stride} frames apart of simulated manipulation; the published split is by row.",
        )
    )


# Real robots of two arms: tasks seen in training, and others
robots = partial(
    published,
    media="pair",
    train="seen_train",
    validation="seen_val",
    unseen="unseen",
    group_pattern=EPISODE,
    media_depth=1,
    embodiment_column="robot_type",
)


def robot_statistics(dataset: str, folder: str) -> Normalisation:
    """Statistics per robot type, from the file that the benchmark's own command makes."""
    return Normalisation(
        stats_file=f"regression/{folder}/{dataset}_stats.json",
        command=f"python utils/compute_robot_action_stats.py --dataset {dataset} --data-root $DATA_DIR",
        relative_command=prepare_command(dataset, "seen_train"),
    )


register_dataset(
    robots(
        name="robocoin",
        title="RoboCOIN",
        samples=148_767,
        stride=10,
        target=ActionSpace(
            dims=tuple(f"{arm}_{axis}" for arm in "lr" for axis in ("x", "y", "z", "roll", "pitch", "yaw")),
            horizon=10,
            normalisation=robot_statistics("robocoin", "robocoin_10"),
            groups={"position": (0, 1, 2, 6, 7, 8), "orientation": (3, 4, 5, 9, 10, 11)},
            units=("m", "m", "m", "rad", "rad", "rad") * 2,
            orientations=(
                Orientation("left arm", (3, 4, 5), "euler_xyz"),
                Orientation("right arm", (9, 10, 11), "euler_xyz"),
            ),
        ),
        splits={name: Split("regression/robocoin_10") for name in ("seen_train", "seen_val", "unseen")},
        licences=(Licence("RoboCOIN", MIT, True, "https://github.com/FlagOpen/RoboCOIN"),),
        # Empty for all tasks of this robot and for no other; everywhere else the task's folder begins with the robot.
        unnamed_robot=(r"^G1edu-u3_", "G1edu-u3"),
        integrity_group="RoboCOIN",
        description="148,767 pairs of two-armed robots of several makes.",
    )
)

register_dataset(
    robots(
        name="agibotbeta",
        title="AgiBotWorld-Beta",
        samples=124_519,
        stride=45,
        target=ActionSpace(
            dims=(
                *("l_x", "l_y", "l_z", "r_x", "r_y", "r_z"),
                *("l_qx", "l_qy", "l_qz", "l_qw", "r_qx", "r_qy", "r_qz", "r_qw", "r_g", "l_g"),
            ),
            horizon=45,
            normalisation=robot_statistics("agibotbeta", "agibot_45"),
            groups={"position": tuple(range(6)), "orientation": tuple(range(6, 14)), "gripper": (14, 15)},
            units=("m",) * 6 + ("",) * 10,
            orientations=(
                Orientation("left arm", (6, 7, 8, 9), "quaternion_xyzw"),
                Orientation("right arm", (10, 11, 12, 13), "quaternion_xyzw"),
            ),
        ),
        splits={name: Split("regression/agibot_45") for name in ("seen_train", "seen_val", "unseen")},
        licences=(AGIBOT,),
        integrity_group="Agibot",
        description="124,519 pairs of one make of two-armed robot.",
    )
)

# Simulated arms: made by ``lary simulate``

SIMULATED = (Licence("lary simulate", MIT, True),)
SIM_SPLITS = {split: Split(f"regression/simarm/{split}_stride5") for split in ("train", "val", "unseen")}

simarm = register_dataset(
    DatasetSpec(
        name="simarm",
        title="Simulated arms",
        revision="1",
        media="pair",
        stride=5,
        target=euler_arm(
            5,
            Normalisation(
                stats_file="regression/simarm/simarm_stats.json",
                command="lary simulate OUT",
                relative_command=prepare_command("simarm"),
            ),
        ),
        splits=SIM_SPLITS,
        licences=SIMULATED,
        unseen="unseen",
        group_pattern=EPISODE,
        media_depth=0,
        embodiment_column="robot_type",
        description="Two simulated arms over a table; scenes A, B and C train, D validates, new objects are unseen.",
        in_demo=True,
    )
)

register_dataset(
    replace(
        simarm,
        name="simarm_unseen",
        title="Simulated arms, unseen objects",
        splits={"unseen": Split(SIM_SPLITS["unseen"].root, table="simarm_metadata_unseen.csv")},
        validation="unseen",
        description="The unseen split of the simulated arms under its own name: new objects, new arm colour.",
        in_demo=False,
    )
)

register_dataset(
    DatasetSpec(
        name="simarm_actions",
        title="Simulated actions",
        revision="1",
        media="clip",
        target=LabelSpace(
            ("close", "lift", "lower", "open", "pour", "pull", "push", "reach", "rotate", "sweep"),
        ),
        splits={"train": Split("classification"), "val": Split("classification")},
        licences=SIMULATED,
        group_pattern=CLIP,
        description="Clips of two simulated arms, ten verbs.",
        in_demo=True,
    )
)
