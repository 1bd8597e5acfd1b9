//! Why some bytes could not be had, in a sentence.

use std::fmt;

use crate::{Bytes, GpuReading, Snapshot, counting};

/// Memory that was asked for and not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// What was asked for; `None` where the system does not say.
    pub wanted: Option<u64>,
    /// Bytes that there are; `None` if unknown.
    pub total: Option<u64>,
    /// Bytes that nobody uses; `None` if unknown.
    pub free: Option<u64>,
    /// What this process holds, by what it is for.
    pub own: Snapshot,
    /// What other processes hold: who, and how much where that can be seen.
    pub others: Vec<(String, Option<u64>)>,
}

impl Shortage {
    /// On a GPU, for the process `pid` whose books are `own`.
    pub fn on_gpu(wanted: Option<u64>, gpu: &GpuReading, pid: u32, own: Snapshot) -> Self {
        let foreign = gpu.processes.iter().flatten().filter(|process| process.pid != pid);
        let others = foreign.map(|process| {
            let name = process.name.as_deref().unwrap_or("a process");
            (format!("{name} (pid {})", process.pid), process.used)
        });
        let others = others.collect();
        Self { wanted, total: gpu.total, free: gpu.free, own, others }
    }

    /// In this process's heap, of which `own` are the books.
    pub fn in_heap(wanted: Option<u64>, own: Snapshot) -> Self {
        let (total, live) = (counting::limit_bytes(), counting::live_bytes());
        let free = total.zip(live).map(|(total, live)| total.saturating_sub(live));
        Self { wanted, total, free, own, others: vec![] }
    }

    /// What holds the most of it.
    pub fn culprit(&self) -> Option<String> {
        let others = self.others.iter().filter_map(|(who, bytes)| Some((who.clone(), (*bytes)?)));
        let own = self.own.categories.iter().map(|line| (line.category.to_string(), line.bytes));
        others.chain(own).max_by_key(|(_, bytes)| *bytes).map(|(who, _)| who)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let size = |bytes: Option<u64>| {
            bytes.map_or_else(|| "an unknown amount".to_owned(), |bytes| Bytes(bytes).to_string())
        };
        match self.wanted {
            Some(wanted) => write!(f, "{} could not be had", Bytes(wanted))?,
            None => write!(f, "memory ran out")?,
        }
        match self.total {
            Some(total) => write!(f, ": of {}", Bytes(total))?,
            None => write!(f, ":")?,
        }
        for (who, bytes) in &self.others {
            write!(f, " {who} holds {},", size(*bytes))?;
        }
        let holds = if self.others.is_empty() { " holds" } else { "" };
        write!(f, " this process{holds} {}", Bytes(self.own.total))?;
        let mut own: Vec<_> = self.own.categories.iter().filter(|line| line.bytes > 0).collect();
        own.sort_by_key(|line| std::cmp::Reverse(line.bytes));
        for (turn, line) in own.iter().enumerate() {
            let lead = if turn == 0 { " (" } else { ", " };
            write!(f, "{lead}{} {}", line.category, Bytes(line.bytes))?;
        }
        let close = if own.is_empty() { "" } else { ")" };
        write!(f, "{close}, and {} is free", size(self.free))
    }
}
