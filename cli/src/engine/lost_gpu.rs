//! A GPU that takes no more work from this process. After an illegal address or a fault of its memory the
//! driver refuses all calls, of this process and to its end; another process may go on.

use super::EngineError;
use super::device::is_lost;
use crate::exit::Exit;
use crate::failure::in_one_line;

/// Ends the process where its GPU is lost, so that the daemon's parent, or the service manager, starts it
/// anew. What it was about is found as after a crash.
pub(crate) fn end_where_gpu_is_lost(error: &EngineError) {
    if !is_lost() {
        return;
    }
    tracing::error!(
        "{}: the GPU takes no more work from this process, which ends for another to go on",
        in_one_line(error)
    );
    std::process::exit(Exit::GpuLost.code().into());
}
