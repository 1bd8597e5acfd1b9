//! SIGINT, SIGTERM and SIGHUP: the first finishes the step, a later one ends at once.

use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::daemon::{Controls, StopReason};
use crate::exit::Exit;
use crate::failure::Failure;

/// Signals that end nothing, though the system would have them end the process.
pub(crate) const WITHOUT_MEANING: [i32; 2] = [SIGUSR1, SIGUSR2];

/// One wish may come as several signals: who signals every process of this name, or of this session, has
/// the daemon told by its parent as well.
const ONE_WISH: Duration = Duration::from_secs(2);

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    /// An end after this step.
    End,
    /// What was asked for a moment ago.
    Same,
    /// An end at once.
    AtOnce,
}

fn wish(first: &mut Option<Instant>, now: Instant) -> Wish {
    match first {
        None => {
            *first = Some(now);
            Wish::End
        }
        Some(first) if now.saturating_duration_since(*first) < ONE_WISH => Wish::Same,
        Some(_) => Wish::AtOnce,
    }
}

/// Has signals ask for an end from now on.
pub fn stop_on_signals(controls: &Controls) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context("cannot listen for signals");
        Failure::new(Exit::Error, error, None)
    };
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().chain(WITHOUT_MEANING);
    let mut signals = Signals::new(heard).map_err(failed)?;
    let controls = controls.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut first = None;
            for signal in signals.forever().filter(|signal| !WITHOUT_MEANING.contains(signal)) {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                match wish(&mut first, Instant::now()) {
                    Wish::End => {
                        let seconds = ONE_WISH.as_secs();
                        tracing::info!(
                            "{name}: ending after this step; once more, {seconds} s from now or \
                             later, ends at once"
                        );
                        controls.request_stop(StopReason::Shutdown);
                    }
                    Wish::Same => {}
                    Wish::AtOnce => {
                        tracing::warn!("{name} again: ending at once, without a checkpoint");
                        std::process::exit(Exit::Interrupted.code().into());
                    }
                }
            }
        })
        .map(drop)
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_are_one_wish() {
        let (start, mut first) = (Instant::now(), None);
        let mut after = |millis| wish(&mut first, start + Duration::from_millis(millis));
        let heard = [0, 3, 1900, 2000].map(&mut after);
        assert_eq!(heard, [Wish::End, Wish::Same, Wish::Same, Wish::AtOnce]);
    }
}
