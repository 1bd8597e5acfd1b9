//! Exit codes: what a script may rely on.

use std::process::ExitCode;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Exit {
    /// 0: what was asked was done.
    Ok = 0,
    /// 1: an error that has no code of its own.
    Error = 1,
    /// 2: the arguments or the configuration are wrong.
    Usage = 2,
    /// 3: another process holds the state directory or the device.
    LockHeld = 3,
    /// 4: a training file cannot be used.
    BadData = 4,
    /// 5: the run does not fit into memory.
    DoesNotFit = 5,
    /// 6: the disk is too full.
    NoSpace = 6,
    /// 7: the command needs a running daemon, and there is none.
    NotRunning = 7,
    /// 8: the state directory cannot be used.
    StateDir = 8,
    /// 9: the GPU takes no more work from this process; another may go on.
    GpuLost = 9,
    /// 130: interrupted a second time, before the step was finished.
    Interrupted = 130,
}

impl Exit {
    /// Every exit.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::LockHeld,
        Self::BadData,
        Self::DoesNotFit,
        Self::NoSpace,
        Self::NotRunning,
        Self::StateDir,
        Self::GpuLost,
        Self::Interrupted,
    ];

    /// The exit with this number; one that is none of ours is an error.
    pub fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Error)
    }

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the book has these codes and no others.
    #[test]
    fn every_code_stands_in_the_book() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/scripts.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (_, table) = page.split_once("| exit code |").unwrap();
        let documented: Vec<u8> = table
            .lines()
            .skip(2)
            .map_while(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
            .collect();
        assert_eq!(documented, Exit::ALL.map(Exit::code));
        assert!(Exit::ALL.into_iter().all(|exit| Exit::from_code(exit.code()) == exit));
        assert_eq!(Exit::from_code(99), Exit::Error);
    }
}
