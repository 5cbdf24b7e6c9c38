"""How a build of TensorRT goes on, told by its own monitor."""

from __future__ import annotations

from typing import Any

from rm_export.bundle import Progress


def progress_monitor(trt: Any, progress: Progress) -> Any:
    """A trt.IProgressMonitor that tells our progress of the outermost phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # trt has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: list[str] = []
            self._left = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.append(phase_name)
            if len(self._phases) == 1:
                self._left = num_steps
                progress.begin(f"TensorRT: {phase_name}", num_steps, "steps")

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self._phases[:1] == [phase_name]:
                self._left -= 1
                progress.advance(1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if self._phases[:1] == [phase_name]:
                progress.advance(self._left)  # TensorRT does not tell every step
            if phase_name in self._phases:
                self._phases.remove(phase_name)

    return Monitor()
