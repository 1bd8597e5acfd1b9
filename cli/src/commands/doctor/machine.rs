//! The processor, and which of its vector units the kernels can use.

use super::check::Check;
use crate::host::{self, Cpu};

pub(super) fn checks() -> Vec<Check> {
    of_cpu(host::cpu())
}

fn of_cpu(cpu: Cpu) -> Vec<Check> {
    let threads = cpu.threads.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    let model = cpu.model.unwrap_or_else(|| "unknown model".to_owned());
    let has = |feature: &str| cpu.features.iter().any(|known| known == feature);
    let features = if cpu.features.is_empty() {
        Check::info("cpu features", "none known")
    } else if has("amx_bf16") || has("avx512f") || has("avx2") || has("asimd") {
        Check::info("cpu features", cpu.features.join(" "))
    } else {
        Check::warning(
            "cpu features",
            format!("{}, without AVX2: a step takes many times as long", cpu.features.join(" ")),
            "use a newer machine; in a virtual one, pass the host's processor through",
        )
    };
    vec![Check::info("cpu", format!("{model}, {threads} threads")), features]
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn vector_units_are_named_and_missed() {
        let with = |features: &[&str]| {
            let features = features.iter().map(ToString::to_string).collect();
            of_cpu(Cpu { model: None, threads: Some(2), features }).pop().unwrap()
        };
        assert_eq!(with(&["avx2", "amx_bf16"]).detail, "avx2 amx_bf16");
        assert_eq!(with(&["fma"]).verdict, Verdict::Warning);
        assert_eq!(with(&[]).verdict, Verdict::Info);
    }
}
