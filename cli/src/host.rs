//! What the machine is, as far as `/proc` and `/sys` tell. What they do not tell is `None`.

use std::fs;

/// Features that decide which kernels run, as `/proc/cpuinfo` names them.
const NOTED_FEATURES: [&str; 7] =
    ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd"];

/// The processor.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Its model's name.
    pub model: Option<String>,
    /// Threads that this process may use.
    pub threads: Option<usize>,
    /// The features it has, of those that decide which kernels run.
    pub features: Vec<String>,
}

/// The processor of this machine.
pub fn cpu() -> Cpu {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Cpu { threads: std::thread::available_parallelism().ok().map(usize::from), ..parse_cpu(&text) }
}

fn parse_cpu(text: &str) -> Cpu {
    let field = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_owned())
        })
    };
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    Cpu {
        model: field(&["model name"]),
        threads: None,
        features: NOTED_FEATURES.iter().copied().filter(has).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_whole_words() {
        let cpu = parse_cpu("model name\t: A CPU\nflags\t\t: fpu avx2 avx512f_not fma\n");
        assert_eq!(cpu.model.as_deref(), Some("A CPU"));
        assert_eq!(cpu.features, ["avx2", "fma"]);
    }
}
