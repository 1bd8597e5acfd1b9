//! A child and all that it starts, which end together.

use std::process::{Child, Command, ExitStatus};

/// Has a command start as the leader of a process group of its own, where there are such.
pub(super) fn own(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// A child with its process group; dropped, all of it is killed.
pub(super) struct ProcessGroup {
    child: Child,
    killed: bool,
}

impl ProcessGroup {
    /// `child` was started by a command that [`own`] has seen.
    pub(super) fn of(child: Child) -> Self {
        Self { child, killed: false }
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether the child itself has ended. It stays a zombie, so that its group cannot become
    /// another's before it is killed.
    #[cfg(unix)]
    pub(super) fn has_ended(&mut self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.killed || matches!(waitid(WaitId::Pid(self.pid()), options), Ok(Some(_)))
    }

    #[cfg(not(unix))]
    pub(super) fn has_ended(&mut self) -> bool {
        self.killed || matches!(self.child.try_wait(), Ok(Some(_)))
    }

    #[cfg(unix)]
    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Limits what the child may map from now on, and with it whatever it starts. One that has
    /// ended already needs no limit.
    #[cfg(target_os = "linux")]
    pub(super) fn limit_memory(&self, bytes: u64) -> std::io::Result<()> {
        use rustix::process::{Resource, Rlimit, prlimit};
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        match prlimit(Some(self.pid()), Resource::As, limit) {
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as where there are limits")]
    pub(super) fn limit_memory(&self, _bytes: u64) -> std::io::Result<()> {
        Ok(())
    }

    /// Kills the group, and says how the child ended.
    pub(super) fn kill(&mut self) -> Option<ExitStatus> {
        if self.killed {
            return None;
        }
        self.killed = true;
        #[cfg(unix)]
        let _ = rustix::process::kill_process_group(self.pid(), rustix::process::Signal::KILL);
        // The group does not exist yet or has lost its leader: the child is killed all the same.
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}
