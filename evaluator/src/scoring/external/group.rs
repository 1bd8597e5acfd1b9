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
