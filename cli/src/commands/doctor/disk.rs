//! The disk of the state directory: how much is free, and how long it takes to hold something fast.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::check::Check;
use crate::config::Config;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::state_dir::StateDir;

const BYTES_PER_GIB: f64 = (1_u64 << 30) as f64;
/// A disk is not measured longer than this.
const MEASURED_FOR: Duration = Duration::from_millis(500);
/// Whoever has not answered by then is called slow.
const PATIENCE: Duration = Duration::from_millis(900);
const BLOCK_BYTES: usize = 256 << 10;
const MOST_BLOCKS: usize = 64;
/// Below this a checkpoint of a small model takes minutes.
const SLOW_MB_PER_S: f64 = 10.0;
/// Above this every recorded step is felt.
const SLOW_MS: f64 = 100.0;

/// What writing took, with a sync after each block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Speed {
    Measured {
        mb_per_s: f64,
        ms_per_sync: f64,
    },
    /// Not one block was on the disk in time.
    TooSlow,
}

pub(super) fn checks(state: &StateDir, config: &Config) -> Vec<Check> {
    let free = match chandler_durable::free_space(state.root()) {
        Ok(bytes) => free(bytes, config.daemon.min_free_gib),
        Err(error) => {
            let hint = error.hint();
            Check::of_failure("disk", &Failure::new(Exit::Error, error, hint))
        }
    };
    vec![free, speed(measure(state.root()))]
}

fn free(free_bytes: u64, wanted_gib: f64) -> Check {
    let free_gib = free_bytes as f64 / BYTES_PER_GIB;
    let detail = format!("{free_gib:.1} GiB free, daemon.min_free_gib is {wanted_gib}");
    if free_gib >= wanted_gib {
        Check::ok("disk", detail)
    } else {
        Check::problem("disk", detail, "free some room, or lower daemon.min_free_gib")
    }
}

fn speed(measured: io::Result<Speed>) -> Check {
    const NAME: &str = "disk speed";
    const CURE: &str = "checkpoints will take long: put the state directory on a faster disk, or \
                        raise train.save_steps";
    match measured {
        Err(error) => {
            Check::warning(NAME, format!("cannot be measured: {error}"), "see the checks above")
        }
        Ok(Speed::TooSlow) => {
            let words = format!("nothing was on the disk after {} ms", PATIENCE.as_millis());
            Check::warning(NAME, words, CURE)
        }
        Ok(Speed::Measured { mb_per_s, ms_per_sync }) => {
            let words =
                format!("{mb_per_s:.0} MB/s in synced blocks of 256 KiB, {ms_per_sync:.1} ms each");
            if mb_per_s < SLOW_MB_PER_S || ms_per_sync > SLOW_MS {
                Check::warning(NAME, words, CURE)
            } else {
                Check::ok(NAME, words)
            }
        }
    }
}

/// Writes to a file without a name; a disk that hangs is left to a thread of its own.
fn measure(folder: &Path) -> io::Result<Speed> {
    let file = tempfile::tempfile_in(folder)?;
    let (tell, told) = channel();
    std::thread::Builder::new().name("disk speed".to_owned()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = tell.send(write_blocks(file));
    })?;
    match told.recv_timeout(PATIENCE) {
        Ok(measured) => measured,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(Speed::TooSlow),
    }
}

fn write_blocks(mut file: File) -> io::Result<Speed> {
    let block = vec![0x5a; BLOCK_BYTES];
    let begun = Instant::now();
    let mut blocks = 0;
    while blocks == 0 || (blocks < MOST_BLOCKS && begun.elapsed() < MEASURED_FOR) {
        file.write_all(&block)?;
        file.sync_data()?;
        blocks += 1;
    }
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    Ok(Speed::Measured {
        mb_per_s: (blocks * BLOCK_BYTES) as f64 / 1e6 / seconds,
        ms_per_sync: seconds * 1e3 / blocks as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_full_disk_and_a_slow_one_are_told() {
        assert_eq!(free(5 << 30, 4.0).verdict, Verdict::Ok);
        assert_eq!(free(3 << 30, 4.0).verdict, Verdict::Problem);
        let measured = |mb_per_s, ms_per_sync| Ok(Speed::Measured { mb_per_s, ms_per_sync });
        assert_eq!(speed(measured(400.0, 0.6)).verdict, Verdict::Ok);
        for slow in [measured(2.0, 130.0), measured(40.0, 200.0), Ok(Speed::TooSlow)] {
            assert_eq!(speed(slow).verdict, Verdict::Warning);
        }
        let refused = speed(Err(io::ErrorKind::PermissionDenied.into()));
        assert!(refused.detail.contains("cannot be measured"));
    }

    #[test]
    fn a_measurement_is_short_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        measure(folder.path()).unwrap();
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
