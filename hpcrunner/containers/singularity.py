"""SingularityCE: the same command line as Apptainer (see `hpcrunner.containers.apptainer`)."""

from hpcrunner.containers.apptainer import Apptainer as backend

__all__ = ["backend"]
