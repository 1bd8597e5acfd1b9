//! The unit for systemd.
//!
//! `packaging/chandler.service` and `packaging/chandler.user.service` are what this writes.

use std::fmt::Write;
use std::path::Path;

use super::plan::{MARK, Scope, ServicePlan};

/// How much later than chandler itself systemd finds a daemon hanging.
const LATER_SECONDS: u64 = 300;

const SERVICE: &str = "
# chandler's parent process speaks to systemd: it hears every sign of life of the daemon.
Type=notify
NotifyAccess=main
{watchdog}
# A crash is answered by the parent process. Started again is what ends otherwise, and not what
# another try would not change: the configuration (2), another holder of the folder (3), too little
# memory (5), a folder that cannot be used (8).
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 3 5 8

# The step that is going on is finished and a checkpoint written. The signal goes to the parent alone,
# which passes it on: a daemon that is asked twice ends at once, without a checkpoint.
KillMode=mixed
TimeoutStopSec=15min

# Where memory runs out the kernel takes the worker first, which reads files of strangers; the daemon
# reports that and goes on.
OOMPolicy=continue
";

/// What holds without namespaces, so also for a user's own manager.
const CONFINED: &str = "
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
# The control socket; the page, webhooks and the hub.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
# @resources stays: the worker lowers its own limits. What is not allowed fails, and kills nobody.
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @keyring
SystemCallErrorNumber=EPERM
UMask=0027
";

/// What needs a manager that is root.
const CONFINED_BY_ROOT: &str = "
ProtectSystem=strict
{protect_home}
{writable}
# Where every chandler of this machine, whoever runs it, looks for the locks of its GPUs.
ReadWritePaths=-/run/lock
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
# NVIDIA's devices and no others. PrivateDevices=yes would hide them.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
# Left out, and why:
#   MemoryDenyWriteExecute  CUDA compiles kernels into memory that it then runs.
#   PrivateUsers            root, whose commands the control socket answers, would be nobody.
#   ProcSubset=pid          the memory plan reads /proc/meminfo, the driver /proc/driver/nvidia.
#   ProtectProc             who else uses the GPU is told by name.
#   PrivateNetwork          the page, webhooks and the hub. Without those:
#                           IPAddressDeny=any and IPAddressAllow=localhost.
";

/// The unit of a service.
pub(super) fn unit(plan: &ServicePlan) -> String {
    let ServicePlan { scope, state_dir, hang, .. } = plan;
    let is_system = *scope == Scope::System;
    let dir = state_dir.display().to_string();
    let mut unit = format!("# {MARK}.\n[Unit]\nDescription=chandler, fine-tuning as a daemon\n");
    let _ = writeln!(unit, "ConditionPathExists={}/chandler.toml", escaped(&dir));
    if is_system {
        unit += "Wants=network-online.target\nAfter=network-online.target\n";
        unit +=
            "# Where a GPU is there, and made ready by that.\nAfter=nvidia-persistenced.service\n";
    }
    unit += "StartLimitIntervalSec=10min\nStartLimitBurst=5\n\n[Service]\n";
    let (program, dir) = (quoted(&plan.program), quoted(state_dir));
    let _ = writeln!(unit, "ExecStart={program} run --dir {dir}");
    if is_system {
        if let Some((user, group)) = &plan.owner {
            let _ = writeln!(unit, "User={user}\nGroup={group}");
        }
        let hub = quoted_assignment("HF_HOME", &state_dir.join("hub"));
        let _ = writeln!(unit, "# Where models from the hub are kept.\nEnvironment={hub}");
    }
    let watchdog = hang.map_or_else(String::new, |hang| {
        let seconds = hang.as_secs() + LATER_SECONDS;
        format!(
            "# Later than daemon.hang_seconds, at which the parent acts.\nWatchdogSec={seconds}s\n"
        )
    });
    unit += &SERVICE.replace("{watchdog}\n", &watchdog);
    unit += CONFINED;
    if is_system {
        unit += &CONFINED_BY_ROOT
            .replace("{protect_home}", protect_home(plan))
            .replace("{writable}", &writable(state_dir));
    }
    let target = if is_system { "multi-user.target" } else { "default.target" };
    unit + &format!("\n[Install]\nWantedBy={target}\n")
}

/// Homes are hidden, unless something that is needed lies in one.
fn protect_home(plan: &ServicePlan) -> &'static str {
    if plan.needs_homes() { "ProtectHome=read-only" } else { "ProtectHome=yes" }
}

/// A folder right below /var/lib is systemd's to make; any other exists.
fn writable(state_dir: &Path) -> String {
    match state_dir.strip_prefix("/var/lib") {
        Ok(name) if name.components().count() == 1 => {
            let name = escaped(&name.to_string_lossy());
            format!("StateDirectory={name}\nStateDirectoryMode=0750")
        }
        _ => format!("ReadWritePaths={}", in_quotes(state_dir)),
    }
}

/// As systemd.unit(5) has it: a `%` begins a specifier.
fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

/// One argument of a command line, as systemd.service(5) has it, where a `$` begins a variable.
fn quoted(path: &Path) -> String {
    in_quotes(path).replace('$', "$$")
}

/// One path of a list: in quotes where it is more than letters.
fn in_quotes(path: &Path) -> String {
    let text = escaped(&path.to_string_lossy());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-%".contains(c);
    if text.chars().all(is_plain) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `NAME=path` for `Environment=`, where a `$` means nothing.
fn quoted_assignment(name: &str, path: &Path) -> String {
    let text = escaped(&path.to_string_lossy()).replace('\\', "\\\\").replace('"', "\\\"");
    if text.contains([' ', '"', '\\', '\'']) {
        format!("\"{name}={text}\"")
    } else {
        format!("{name}={text}")
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn plan(scope: Scope) -> ServicePlan {
        ServicePlan {
            scope,
            name: "chandler".to_owned(),
            program: PathBuf::from("/usr/bin/chandler"),
            state_dir: PathBuf::from("/var/lib/chandler"),
            reads: vec![],
            owner: Some(("chandler".to_owned(), "chandler".to_owned())),
            hang: Some(Duration::from_secs(3600)),
        }
    }

    /// `CHANDLER_WRITE_UNITS=1 cargo test -p chandler-cli --lib packaged` writes them anew.
    #[test]
    fn the_packaged_units_are_what_is_written() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
        for (scope, name) in
            [(Scope::System, "chandler.service"), (Scope::User, "chandler.user.service")]
        {
            let mut plan = plan(scope);
            if scope == Scope::User {
                plan.state_dir = PathBuf::from("%h/chandler-state");
            }
            // A specifier is what is meant there.
            let written = unit(&plan).replace("%%h", "%h");
            let path = folder.join(name);
            if std::env::var_os("CHANDLER_WRITE_UNITS").is_some() {
                chandler_durable::write(&path, written.as_bytes()).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), written, "{name}");
        }
    }

    #[test]
    fn paths_of_any_kind_are_one_argument() {
        let odd = ServicePlan {
            state_dir: PathBuf::from("/srv/a b/50%\"$x"),
            program: PathBuf::from("/home/me/.cargo/bin/chandler"),
            hang: None,
            ..plan(Scope::System)
        };
        let unit = unit(&odd);
        for line in [
            "ExecStart=/home/me/.cargo/bin/chandler run --dir \"/srv/a b/50%%\\\"$$x\"",
            "ReadWritePaths=\"/srv/a b/50%%\\\"$x\"",
            "ProtectHome=read-only",
            "ConditionPathExists=/srv/a b/50%%\"$x/chandler.toml",
            "Environment=\"HF_HOME=/srv/a b/50%%\\\"$x/hub\"",
        ] {
            assert!(unit.lines().any(|written| written == line), "{line}\nin\n{unit}");
        }
        assert!(!unit.contains("WatchdogSec"), "a daemon that may hang for ever");
        for (reads, line) in [
            ("/home/me/models/qwen3", "ProtectHome=read-only"),
            ("/srv/models/qwen3", "ProtectHome=yes"),
        ] {
            let of_a_model =
                ServicePlan { reads: vec![PathBuf::from(reads)], ..plan(Scope::System) };
            assert!(super::unit(&of_a_model).lines().any(|written| written == line), "{reads}");
        }
    }

    /// Without it a lock can be neither made nor opened, wherever `/run/lock` is the folder for them.
    #[test]
    fn a_confined_service_may_lock_a_gpu() {
        for state_dir in ["/var/lib/chandler", "/srv/chandler"] {
            let plan = ServicePlan { state_dir: PathBuf::from(state_dir), ..plan(Scope::System) };
            let unit = unit(&plan);
            assert!(unit.lines().any(|line| line == "ReadWritePaths=-/run/lock"), "{unit}");
        }
    }

    #[test]
    fn a_user_has_no_say_over_namespaces() {
        let unit = unit(&plan(Scope::User));
        assert!(unit.contains("NoNewPrivileges=yes") && unit.contains("WantedBy=default.target"));
        for root in ["ProtectSystem", "User=", "DeviceAllow", "CapabilityBoundingSet"] {
            assert!(!unit.contains(root), "{root}");
        }
    }
}
