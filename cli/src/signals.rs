//! SIGINT, SIGTERM and SIGHUP: the first finishes the step, the second ends at once.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::daemon::{Controls, StopReason};
use crate::exit::Exit;
use crate::failure::Failure;

/// Has signals ask for an end from now on.
pub fn stop_on_signals(controls: &Controls) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context("cannot listen for signals");
        Failure::new(Exit::Error, error, None)
    };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let controls = controls.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut asked_before = false;
            for signal in signals.forever() {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                if asked_before {
                    tracing::warn!("{name} again: ending at once, without a checkpoint");
                    std::process::exit(Exit::Interrupted.code().into());
                }
                asked_before = true;
                tracing::info!("{name}: ending after this step; once more ends at once");
                controls.request_stop(StopReason::Shutdown);
            }
        })
        .map(drop)
        .map_err(failed)
}
