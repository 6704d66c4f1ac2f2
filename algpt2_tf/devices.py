"""The distribution strategies of TensorFlow that training can be started under."""

import json
import os

import keras
import tensorflow as tf

from algpt2.errors import InputError
from algpt2.training.flops import peak_flops

DTYPE_POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def select_strategy(name, device="auto", compiled=False):
    """The distribution strategy of a run; to be called before TensorFlow has started its devices.

    Args:
        name: str. `"single"` device; `"mirrored"` over all GPUs of the machine; `"multiworker"`, over the machines
            that the environment variable TF_CONFIG lists; or `"tpu"`, the one that TPU_NAME names.
        device: str. `"cpu"` hides the GPUs; `"gpu"` wants one; `"auto"` takes what there is.
        compiled: bool. Whether XLA is to compile the step, which TensorFlow's deterministic operations do not allow.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        InputError: if the devices or workers are not there.
    """
    if device != "auto" and name == "tpu":
        raise InputError(f"--device {device} would have no effect beside --strategy tpu; leave it out")
    gpus = select_device(device)
    if device == "gpu" and name == "mirrored" and len(gpus) < 2:
        raise InputError(f"--device gpu --strategy mirrored needs two GPUs, found {len(gpus)}; leave one of them out")
    if not gpus and not compiled:
        # Bit-equal results when a run is resumed; on GPUs it would cost speed.
        tf.config.experimental.enable_op_determinism()
    return {"single": tf.distribute.get_strategy, "mirrored": _mirrored, "multiworker": _multiworker, "tpu": _tpu}[
        name
    ]()


def select_device(device):
    """Hide the GPUs if the CPU is asked for; to be called before TensorFlow has started its devices.

    Args:
        device: str, as `--device`.

    Returns:
        list: the GPUs that are used.

    Raises:
        InputError: if a GPU is asked for, and there is none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise InputError("--device gpu: TensorFlow finds no GPU; leave --device out, or install tensorflow[and-cuda]")
    if device == "cpu" and gpus:
        tf.config.set_visible_devices([], "GPU")
        return []
    return gpus


def is_first(strategy):
    """bool: whether this process writes the files of a run."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type in ("chief", "worker") and resolver.task_id == 0


def wait_for_everyone(strategy, succeeded=True):
    """Return when all workers have called this.

    Args:
        strategy: `tf.distribute.Strategy`.
        succeeded: bool. Whether this worker can go on.

    Raises:
        InputError: if another worker could not.
    """
    if on_any_worker(strategy, not succeeded) and succeeded:
        raise InputError("another worker stopped; its message says why")


def on_any_worker(strategy, wish):
    """Whether a worker wishes something; all workers must ask, and get the same answer.

    Args:
        strategy: `tf.distribute.Strategy`.
        wish: bool. What this worker wishes.

    Returns:
        bool.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return wish
    wishes = strategy.run(
        lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.constant(1.0 if wish else 0.0))
    )
    return float(strategy.experimental_local_results(wishes)[0]) > 0


def _mirrored():
    gpus = tf.config.list_physical_devices("GPU") if tf.config.get_visible_devices("GPU") else []
    if len(gpus) >= 2:
        print(f"MirroredStrategy over {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(
        f"found {len(gpus)} GPUs, not two: MirroredStrategy over two logical devices of this CPU, "
        "which computes the same but is no faster",
        flush=True,
    )
    # The default, collective operations, breaks where one process makes a second strategy.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)


def _multiworker():
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        workers = [address for job in ("chief", "worker") for address in config["cluster"].get(job, [])]
        task = config["task"]["type"], int(config["task"]["index"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            "--strategy multiworker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    print(f"MultiWorkerMirroredStrategy: {task[0]} {task[1]} of {len(workers)}; waiting for the others", flush=True)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", ""))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"--strategy tpu: no TPU can be reached ({error}); name it in TPU_NAME, or run on a TPU VM"
        ) from error


def machine_flops(arguments, strategy):
    """float: the floating-point operations a second that the devices of a run reach in a matrix product."""
    accelerated = bool(tf.config.get_visible_devices("GPU")) or arguments.strategy == "tpu"
    size = 8192 if accelerated else 512
    dtype = keras.DTypePolicy(DTYPE_POLICIES[arguments.precision]).compute_dtype
    matrix = tf.ones((size, size), dtype)

    def multiply():
        return float(tf.matmul(matrix, matrix)[0, 0])

    return peak_flops(multiply, size) * (strategy.num_replicas_in_sync if accelerated else 1)
