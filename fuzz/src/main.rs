//! Runs targets for as long as one wants, and says how many inputs there were and what they took.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chandler_fuzz::{Corpus, MOST_BYTES_OF_MEMORY, MOST_MILLIS, Random, TARGETS, Target, target};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};

/// Hands mutated inputs to chandler's readers
#[derive(Debug, Parser)]
struct Args {
    /// Targets; none means all
    targets: Vec<String>,
    /// Inputs for each target
    #[arg(long, default_value_t = u64::MAX)]
    executions: u64,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the sequence of inputs begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where an input goes that is too much for its reader
    #[arg(long, default_value = "fuzz-findings")]
    findings: PathBuf,
    /// Hands these files to the one target that is named, and mutates nothing
    #[arg(long, value_name = "FILE", num_args = 1..)]
    replay: Vec<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let targets = match args.targets.as_slice() {
        [] => TARGETS.to_vec(),
        names => {
            let known = |name: &String| target(name).with_context(|| format!("no target {name}"));
            names.iter().map(known).collect::<anyhow::Result<_>>()?
        }
    };
    // Files say nothing to several targets.
    if let ([target], false) = (targets.as_slice(), args.replay.is_empty()) {
        return replay(*target, &args.replay);
    }
    // Readers catch panics of libraries, thousands of them; what is a finding is told by its words.
    std::panic::set_hook(Box::new(|panic| *last_panic() = panic.to_string()));
    let found: usize =
        targets.iter().map(|target| run(*target, &args)).sum::<anyhow::Result<usize>>()?;
    chandler_fuzz::clean_up();
    if found > 0 {
        bail!("{found} inputs were too much: see {}", args.findings.display());
    }
    Ok(())
}

/// What the newest panic said, and where.
fn last_panic() -> MutexGuard<'static, String> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one target on files; a panic or an abort ends it there.
fn replay(target: Target, files: &[PathBuf]) -> anyhow::Result<()> {
    for path in files {
        let input = std::fs::read(path).with_context(|| path.display().to_string())?;
        let start = Instant::now();
        target.run(&input);
        let memory = peak_bytes().unwrap_or(0) >> 20;
        writeln!(
            io::stdout(),
            "{}: {} ms, memory {memory} MiB",
            path.display(),
            start.elapsed().as_millis()
        )?;
    }
    chandler_fuzz::clean_up();
    Ok(())
}

/// Runs one target; how many inputs were too much for it.
fn run(target: Target, args: &Args) -> anyhow::Result<usize> {
    let corpus = Corpus::read(target.name)?;
    let mut random = Random::new(args.seed);
    let (began, limit) = (Instant::now(), Duration::from_secs(args.seconds));
    let (mut executions, mut slowest, mut found) = (0, Duration::ZERO, 0);
    let kept = Kept::new(args.findings.join(format!("{}-{}-aborted", target.name, args.seed)))?;
    while executions < args.executions && began.elapsed() < limit {
        let input = random.input(&corpus);
        kept.put(&input)?;
        let start = time_of_cpu();
        let ended = catch_unwind(AssertUnwindSafe(|| target.run(&input)));
        let taken = time_of_cpu().saturating_sub(start);
        slowest = slowest.max(taken);
        executions += 1;
        if ended.is_err() || taken.as_millis() > MOST_MILLIS {
            found += 1;
            let path = args.findings.join(format!("{}-{}-{executions}", target.name, args.seed));
            chandler_durable::write(&path, &input)?;
            let words = if ended.is_err() { last_panic().clone() } else { String::new() };
            eprintln!("{}: {} ms {words}", path.display(), taken.as_millis());
        }
    }
    kept.clear()?;
    let memory = peak_bytes();
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<16} {executions:>10} inputs in {:>5} s, slowest {:>4} ms, memory {:>4} MiB, findings \
         {found}",
        target.name,
        began.elapsed().as_secs(),
        slowest.as_millis(),
        memory.unwrap_or(0) >> 20,
    )?;
    Ok(found + usize::from(memory.is_some_and(|bytes| bytes > MOST_BYTES_OF_MEMORY)))
}

/// What this process has had of the CPU: on a shared machine an input may wait for its turn.
fn time_of_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The input that is being read, in a file: where a reader ends the whole process, it stays there.
struct Kept {
    path: PathBuf,
    file: File,
}

impl Kept {
    fn new(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { file: File::create(&path)?, path })
    }

    fn put(&self, input: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(input, 0)
    }

    /// Nothing was too much; the folder goes too where it holds nothing else. Another process that ends
    /// now may have removed it.
    fn clear(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        match std::fs::remove_dir(self.path.parent().unwrap_or(Path::new("."))) {
            Err(error) => match error.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }
}

/// The most memory that this process has had; `None` where the system does not say.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
