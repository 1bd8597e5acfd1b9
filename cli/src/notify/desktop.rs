//! Notifications of the desktop, by the program that every desktop has for it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::message::Notice;
use crate::config::Topic;

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Shows notices; what is in its way is said once.
#[derive(Debug, Default)]
pub(super) struct Desktop {
    told_trouble: Arc<AtomicBool>,
    /// Those that are being shown.
    showing: Vec<JoinHandle<()>>,
}

impl Drop for Desktop {
    /// What the last notice met is said too; none is waited for longer than its program may take.
    fn drop(&mut self) {
        for thread in self.showing.drain(..) {
            let _unheard = thread.join();
        }
    }
}

impl Desktop {
    /// Shows what somebody would look up for. Nobody waits for it.
    pub(super) fn show(&mut self, notice: &Notice) {
        let is_shown = [Topic::JobDone, Topic::JobFailed, Topic::Alert, Topic::Waiting];
        if !is_shown.contains(&notice.topic) {
            return;
        }
        let (notice, told) = (notice.clone(), Arc::clone(&self.told_trouble));
        let shown = std::thread::Builder::new().name("desktop".to_owned()).spawn(move || {
            if let Err(why) = Self::show_now(&notice)
                && !told.swap(true, Ordering::SeqCst)
            {
                tracing::warn!("notify.desktop: {why}");
            }
        });
        self.showing.retain(|thread| !thread.is_finished());
        match shown {
            Ok(thread) => self.showing.push(thread),
            Err(error) => tracing::warn!("notify.desktop: {error}"),
        }
    }

    /// Shows a notice and waits until it is shown; else says in words why not.
    pub(super) fn show_now(notice: &Notice) -> Result<(), String> {
        let mut command = command(cfg!(target_os = "macos"), notice.title(), &notice.line());
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .env_remove("NOTIFY_SOCKET")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("there is no program {program}"),
            _ => format!("{program}: {error}"),
        })?;
        let until = Instant::now() + PATIENCE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("{program}: {status}")),
                Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                Ok(None) => {
                    // It may have ended by itself.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("{program} took more than {} s", PATIENCE.as_secs()));
                }
                Err(error) => return Err(format!("{program}: {error}")),
            }
        }
    }
}

fn command(is_mac: bool, title: &str, line: &str) -> Command {
    if is_mac {
        let mut command = Command::new("osascript");
        // The texts are arguments of the script, never parts of it.
        command.args(["-e", "on run texts"]);
        let show = "display notification (item 2 of texts) with title (item 1 of texts)";
        command.args(["-e", show, "-e", "end run", "--", title, line]);
        return command;
    }
    let mut command = Command::new("notify-send");
    // A body is read as markup: Desktop Notifications Specification, section "Markup".
    let line = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    command.args(["--app-name=chandler", "--", title, &line]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(is_mac: bool) -> Vec<String> {
        let command = command(is_mac, "chandler: alert", "-x <b>\" & y");
        command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn texts_are_arguments_and_nothing_in_them_acts() {
        let linux = arguments(false);
        assert_eq!(
            linux,
            ["--app-name=chandler", "--", "chandler: alert", "-x &lt;b&gt;\" &amp; y"]
        );
        let mac = arguments(true);
        let at = mac.iter().position(|arg| arg == "--").unwrap();
        assert_eq!(mac[at + 1..], ["chandler: alert", "-x <b>\" & y"]);
    }
}
