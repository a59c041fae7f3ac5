"""Two arms of seven joints and a gripper, as MJCF.

``heron`` stands on a foot and turns and bends by turns, in round links (yaw, pitch, roll, pitch, roll, pitch, roll).
``badger`` rides on a rail across the table and bends in square links (rail, yaw, pitch, pitch, roll, pitch, roll).
The tool's frame lies between the finger tips; hanging straight down it is turned by nothing against the world, so that
roll, pitch and yaw of ordinary work stay far from their limits. The fingers close along the tool's y axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lary.simulate.shapes import Colour, Material

WIDEST = 0.11
"""Largest opening of both grippers, metres."""


@dataclass(frozen=True)
class Arm:
    """One build: its name as robot type, its bodies as MJCF, the posture that it returns to, and its colours.

    ``xml`` has a place ``{group}`` in no geom: the fixed parts carry group 0, the moving ones group 1. Geoms are named
    ``arm_<role>_<number>``; a palette gives every role its material.
    """

    name: str
    xml: str
    home: tuple[float, ...]
    palettes: tuple[Mapping[str, Material], ...]
    unseen_palette: Mapping[str, Material]


def _palette(
    main: Colour, accent: Colour, dark: Colour = (0.16, 0.17, 0.19), gloss: float = 0.45
) -> dict[str, Material]:
    return {
        "main": Material(main, gloss=gloss),
        "accent": Material(accent, gloss=gloss),
        "dark": Material(dark, gloss=0.3),
        "finger": Material((0.30, 0.31, 0.33), (0.42, 0.43, 0.45), "stripes_z", 0.012, 0.2),
    }


def _joint(name: str, axis: str, low: float, high: float, kind: str = "hinge") -> str:
    return f'<joint name="{name}" type="{kind}" axis="{axis}" range="{low} {high}"/>'


def _finger(side: int, jaw: str) -> str:
    name = "left" if side > 0 else "right"
    return (
        f'<body name="{name}" pos="0 0 0"><joint name="{name}" type="slide" axis="0 {side} 0" range="0 0.06"/>'
        + jaw.format(side=side, name=name)
        + "</body>"
    )


_HERON_JAW = (
    '<geom name="arm_finger_{name}" type="box" group="1" size="0.011 0.006 0.038" pos="0 {side}e-3 0.185"/>'
    '<geom name="arm_dark_{name}" type="box" group="1" size="0.013 0.009 0.016" pos="0 {side}e-2 0.140"/>'
)
_BADGER_JAW = (
    '<geom name="arm_finger_{name}" type="box" group="1" size="0.017 0.007 0.030" pos="0 {side}e-3 0.170"/>'
    '<geom name="arm_accent_{name}" type="box" group="1" size="0.019 0.012 0.014" pos="0 {side}e-2 0.132"/>'
)
_TOOL = '<site name="tool" pos="0 0 {z}" euler="0 3.141592653589793 0"/>'

_HERON = f"""
<geom name="arm_dark_foot" type="cylinder" group="0" size="0.085 0.015" pos="0 0 0.015"/>
<geom name="arm_main_foot" type="cylinder" group="0" size="0.065 0.040" pos="0 0 0.060"/>
<body pos="0 0 0.10">{_joint("j1", "0 0 1", -2.8, 2.8)}
 <geom name="arm_main_1" type="capsule" group="1" size="0.055" fromto="0 0 0.03 0 0 0.17"/>
 <body pos="0 0 0.22">{_joint("j2", "0 1 0", -1.9, 1.9)}
  <geom name="arm_dark_2" type="cylinder" group="1" size="0.052 0.066" euler="1.5707963 0 0"/>
  <geom name="arm_main_2" type="capsule" group="1" size="0.046" fromto="0 0 0.04 0 0 0.16"/>
  <body pos="0 0 0.19">{_joint("j3", "0 0 1", -2.8, 2.8)}
   <geom name="arm_accent_3" type="cylinder" group="1" size="0.048 0.012"/>
   <geom name="arm_main_3" type="capsule" group="1" size="0.043" fromto="0 0 0.03 0 0 0.15"/>
   <body pos="0 0 0.18">{_joint("j4", "0 1 0", 0.15, 2.75)}
    <geom name="arm_dark_4" type="cylinder" group="1" size="0.046 0.058" euler="1.5707963 0 0"/>
    <geom name="arm_main_4" type="capsule" group="1" size="0.039" fromto="0 0 0.03 0 0 0.14"/>
    <body pos="0 0 0.17">{_joint("j5", "0 0 1", -2.8, 2.8)}
     <geom name="arm_accent_5" type="cylinder" group="1" size="0.041 0.010"/>
     <geom name="arm_main_5" type="capsule" group="1" size="0.036" fromto="0 0 0.02 0 0 0.15"/>
     <body pos="0 0 0.18">{_joint("j6", "0 1 0", -2.6, 2.6)}
      <geom name="arm_dark_6" type="cylinder" group="1" size="0.038 0.046" euler="1.5707963 0 0"/>
      <geom name="arm_main_6" type="capsule" group="1" size="0.034" fromto="0 0 0.01 0 0 0.05"/>
      <body pos="0 0 0.03">{_joint("j7", "0 0 1", -3.05, 3.05)}
       <geom name="arm_accent_7" type="cylinder" group="1" size="0.032 0.008" pos="0 0 0.066"/>
       <geom name="arm_main_7" type="box" group="1" size="0.024 0.072 0.024" pos="0 0 0.098"/>
       {_finger(1, _HERON_JAW)}{_finger(-1, _HERON_JAW)}
       {_TOOL.format(z=0.210)}
      </body></body></body></body></body></body></body>
"""

_BADGER = f"""
<geom name="arm_dark_rail" type="box" group="0" size="0.045 0.48 0.022" pos="-0.04 0 0.022"/>
<geom name="arm_main_rail" type="box" group="0" size="0.060 0.50 0.006" pos="-0.04 0 0.006"/>
<body pos="-0.04 0 0.05">{_joint("j1", "0 1 0", -0.35, 0.35, "slide")}
 <geom name="arm_accent_1" type="box" group="1" size="0.085 0.095 0.028" pos="0 0 0.024"/>
 <body pos="0 0 0.06">{_joint("j2", "0 0 1", -2.6, 2.6)}
  <geom name="arm_main_2" type="cylinder" group="1" size="0.070 0.070" pos="0 0 0.06"/>
  <body pos="0 0 0.20">{_joint("j3", "0 1 0", -1.9, 1.9)}
   <geom name="arm_dark_3" type="cylinder" group="1" size="0.062 0.085" euler="1.5707963 0 0"/>
   <geom name="arm_main_3" type="box" group="1" size="0.044 0.052 0.150" pos="0 0 0.19"/>
   <geom name="arm_accent_3" type="box" group="1" size="0.046 0.020 0.100" pos="0.001 0 0.19"/>
   <body pos="0 0 0.37">{_joint("j4", "0 1 0", 0.15, 2.75)}
    <geom name="arm_dark_4" type="cylinder" group="1" size="0.054 0.072" euler="1.5707963 0 0"/>
    <geom name="arm_main_4" type="box" group="1" size="0.038 0.044 0.065" pos="0 0 0.09"/>
    <body pos="0 0 0.16">{_joint("j5", "0 0 1", -2.8, 2.8)}
     <geom name="arm_dark_5" type="cylinder" group="1" size="0.040 0.010"/>
     <geom name="arm_main_5" type="box" group="1" size="0.034 0.040 0.075" pos="0 0 0.088"/>
     <body pos="0 0 0.20">{_joint("j6", "0 1 0", -2.6, 2.6)}
      <geom name="arm_dark_6" type="cylinder" group="1" size="0.040 0.054" euler="1.5707963 0 0"/>
      <body pos="0 0 0.03">{_joint("j7", "0 0 1", -3.05, 3.05)}
       <geom name="arm_accent_7" type="cylinder" group="1" size="0.046 0.026" pos="0 0 0.040"/>
       <geom name="arm_main_7" type="box" group="1" size="0.034 0.088 0.020" pos="0 0 0.092"/>
       {_finger(1, _BADGER_JAW)}{_finger(-1, _BADGER_JAW)}
       {_TOOL.format(z=0.188)}
      </body></body></body></body></body></body></body>
"""

WHITE, ORANGE = (0.90, 0.91, 0.92), (0.92, 0.45, 0.08)
ARMS: dict[str, Arm] = {
    "heron": Arm(
        "heron", _HERON, (0.0, 0.2, 0.0, 1.9, 0.0, 1.04, 0.0),
        palettes=(
            _palette(WHITE, (0.15, 0.38, 0.70)), _palette((0.55, 0.60, 0.66), (0.85, 0.20, 0.15)),
            _palette((0.88, 0.84, 0.74), (0.20, 0.45, 0.40)),
        ),
        unseen_palette=_palette((0.58, 0.30, 0.72), (0.80, 0.90, 0.30)),
    ),
    "badger": Arm(
        "badger", _BADGER, (0.0, 0.0, 0.1, 1.9, 0.0, 1.14, 0.0),
        palettes=(
            _palette(ORANGE, (0.22, 0.23, 0.25)), _palette((0.93, 0.76, 0.15), (0.30, 0.31, 0.34)),
            _palette((0.25, 0.29, 0.34), (0.92, 0.55, 0.12)),
        ),
        unseen_palette=_palette((0.90, 0.35, 0.62), (0.25, 0.62, 0.35)),
    ),
}  # fmt: skip
