# Paths of the benchmark. Edit, then: source env.sh
# LARY_ROOT is the folder of this file. Every variable can also be set in lary.yaml or on the command line; 'lary config
# show' prints where a value comes from. Without the line 'set -a' bare NAME=value lines would not be exported.
set -a
LARY_ROOT=${LARY_ROOT:-$(cd "$(dirname "${BASH_SOURCE:-$0}")" && pwd)}
LARY_LOG_DIR=${LARY_LOG_DIR:-$LARY_ROOT/logs}
DATA_DIR=${DATA_DIR:-$LARY_ROOT/data}
MODEL_DIR=${MODEL_DIR:-$LARY_ROOT/models}
LARY_LA_DIR=${LARY_LA_DIR:-$LARY_ROOT/latent_actions}
# Checkpoints: a folder or a hub id. Unset: a folder under MODEL_DIR if it is there, else the hub.
# DINO_V2_PATH=$MODEL_DIR/DINOv2
# DINO_V3_PATH=$MODEL_DIR/DINOv3
# SIGLIP2_PATH=$MODEL_DIR/SigLIP2
set +a
