//! Other daemons on this machine, as `/proc` shows them.

use std::fs;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::state_dir::StateDir;

/// A process that may be a daemon.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    pid: u32,
    parent: u32,
    /// The command line.
    words: Vec<String>,
    /// Its working folder, where this user may see it.
    folder: Option<PathBuf>,
    /// `CHANDLER_DIR` in its environment.
    variable: Option<String>,
}

/// Every process that this user can see; `None` where there is no `/proc`.
pub(super) fn read() -> Option<Vec<Process>> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let processes: Vec<Process> = pids.filter_map(read_one).collect();
    (!processes.is_empty()).then_some(processes)
}

fn read_one(pid: u32) -> Option<Process> {
    let place = Path::new("/proc").join(pid.to_string());
    let words = strings(&fs::read(place.join("cmdline")).ok()?);
    let status = fs::read_to_string(place.join("status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let variables = strings(&fs::read(place.join("environ")).unwrap_or_default());
    let variable = variables.iter().find_map(|pair| pair.strip_prefix("CHANDLER_DIR="));
    let folder = fs::read_link(place.join("cwd")).ok();
    Some(Process { pid, parent, words, folder, variable: variable.map(str::to_owned) })
}

fn strings(bytes: &[u8]) -> Vec<String> {
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

impl Process {
    /// Whether it is `chandler run`, or its twin for GPUs, by its command line.
    fn is_daemon(&self) -> bool {
        let program = self.words.first().and_then(|word| Path::new(word).file_name());
        let name = program.is_some_and(|name| name == "chandler" || name == "chandler-cuda");
        name && self.words.iter().skip(1).any(|word| word == "run")
    }

    /// The state directory that it works on, as far as that can be told.
    fn state_dir(&self) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        let mut words = self.words.iter();
        let mut given = self.variable.clone();
        while let Some(word) = words.next() {
            if word == "--dir" {
                given = words.next().cloned();
            } else if let Some(dir) = word.strip_prefix("--dir=") {
                given = Some(dir.to_owned());
            }
        }
        Some(StateDir::choose(given.as_deref().map(Path::new), folder).root().to_owned())
    }
}

/// The daemons that there are; one that watches another and the one it watches are one.
fn daemons(processes: &[Process]) -> Vec<&Process> {
    let all: Vec<&Process> = processes.iter().filter(|process| process.is_daemon()).collect();
    let is_child = |process: &Process| all.iter().any(|other| other.pid == process.parent);
    all.iter().copied().filter(|process| !is_child(process)).collect()
}

/// Whether a daemon works on this state directory.
fn works_on(process: &Process, root: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    process.state_dir().is_some_and(|dir| whole(&dir) == whole(root))
}

/// The processes of the daemon of this state directory, its parent among them.
pub(super) fn pids_of_daemon(processes: &Option<Vec<Process>>, root: &Path) -> Vec<u32> {
    let all = processes.iter().flatten();
    let ours = all.filter(|process| process.is_daemon() && works_on(process, root));
    ours.map(|process| process.pid).collect()
}

pub(super) fn check(processes: &Option<Vec<Process>>, root: &Path) -> Vec<Check> {
    const NAME: &str = "daemons";
    let Some(processes) = processes else {
        return vec![Check::info(NAME, "unknown: this system does not list processes in /proc")];
    };
    let (here, elsewhere): (Vec<&Process>, Vec<&Process>) =
        daemons(processes).into_iter().partition(|process| works_on(process, root));
    let mut checks = Vec::new();
    let pids: Vec<String> = here.iter().map(|process| process.pid.to_string()).collect();
    if here.len() > 1 {
        checks.push(Check::problem(
            NAME,
            format!("{} work on this state directory: pids {}", here.len(), pids.join(", ")),
            "`chandler stop` ends one of them, `kill PID` the other; `ls -l` says whether the \
             directory was replaced under the first",
        ));
    }
    for process in &elsewhere {
        let place = process
            .state_dir()
            .map_or_else(|| "a folder that is unknown".to_owned(), |dir| dir.display().to_string());
        checks.push(Check::warning(
            NAME,
            format!("another one, pid {}, works on {place} and takes time and memory", process.pid),
            "set memory.limit and memory.reserve for both, or stop one",
        ));
    }
    if checks.is_empty() {
        checks.push(match pids.as_slice() {
            [] => Check::ok(NAME, "none that this user can see"),
            [pid, ..] => Check::ok(NAME, format!("one, pid {pid}, on this state directory")),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    fn process(pid: u32, parent: u32, line: &str) -> Process {
        let words = line.split(' ').map(str::to_owned).collect();
        Process { pid, parent, words, folder: Some("/home/a".into()), variable: None }
    }

    fn verdicts(processes: &[Process]) -> Vec<(Verdict, String)> {
        let checks = check(&Some(processes.to_vec()), Path::new("/home/a/s"));
        checks.into_iter().map(|check| (check.verdict, check.detail)).collect()
    }

    #[test]
    fn a_daemon_with_its_supervisor_is_one() {
        let mut all = vec![
            process(5, 1, "/usr/bin/chandler run --dir s"),
            process(6, 5, "/usr/bin/chandler run --dir s --supervised-by 5"),
            process(7, 1, "vim run chandler"),
            process(8, 1, "chandler status --watch"),
        ];
        assert_eq!(verdicts(&all), [(Verdict::Ok, "one, pid 5, on this state directory".into())]);
        assert_eq!(pids_of_daemon(&Some(all.clone()), Path::new("/home/a/s")), [5, 6]);
        assert!(pids_of_daemon(&Some(all.clone()), Path::new("/home/b")).is_empty());
        all.push(process(9, 1, "chandler-cuda run --dir=/home/a/s"));
        let found = verdicts(&all);
        assert_eq!(
            found[0],
            (Verdict::Problem, "2 work on this state directory: pids 5, 9".into())
        );
    }

    #[test]
    fn daemons_elsewhere_are_named_with_their_directory() {
        let mut other = process(5, 1, "chandler run");
        assert!(verdicts(&[other.clone()])[0].1.contains("/home/a/chandler-state"));
        other.variable = Some("/data".to_owned());
        let found = verdicts(&[other.clone()]);
        assert!(found[0].1.contains("/data"), "{found:?}");
        assert_eq!(found[0].0, Verdict::Warning);
        other.folder = None;
        assert!(verdicts(&[other])[0].1.contains("unknown"));
        assert_eq!(verdicts(&[])[0].0, Verdict::Ok);
        assert_eq!(check(&None, Path::new("/"))[0].verdict, Verdict::Info);
    }

    #[test]
    fn this_process_is_seen() {
        let Some(all) = read() else { return eprintln!("no /proc here: skipped") };
        let own = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert!(own.folder.is_some() && !own.words.is_empty() && own.parent > 0);
    }
}
