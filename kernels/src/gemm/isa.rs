//! Which instructions the products use: the best that the CPU has, or fewer on request.

use std::sync::LazyLock;

use pulp::Arch;

/// The instructions that matrix products use in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions {
    /// For f32: `avx512f`, `avx2`, `neon` or `portable`.
    pub f32: &'static str,
    /// For bf16: `amx_bf16`, `avx512_bf16`, `avx512f`, `avx2`, `neon` or `portable`.
    pub bf16: &'static str,
}

/// The instructions that matrix products use: the best that this CPU has.
///
/// `CHANDLER_ISA=avx512`, `avx2` or `portable` in the environment, read once, keeps them and every
/// other loop from using more than that, to test or time the kernels of lesser CPUs on a greater
/// one. It cannot make a CPU do more than it can; another word changes nothing.
pub fn instructions() -> Instructions {
    Instructions { f32: of_f32().name(), bf16: of_bf16().name() }
}

/// Instructions that there are kernels for, lesser ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    Portable,
    Neon,
    Avx2,
    Avx512,
    Avx512Bf16,
    AmxBf16,
}

impl Isa {
    fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512f",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::AmxBf16 => "amx_bf16",
        }
    }

    /// What a word in the environment allows.
    fn allowed(word: &str) -> Isa {
        match word {
            "portable" => Isa::Portable,
            "avx2" => Isa::Avx2,
            "avx512" => Isa::Avx512Bf16,
            _ => Isa::AmxBf16,
        }
    }

    /// Whether this process may use kernels of these instructions.
    pub(super) fn is_there(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Isa::Portable => true,
                Isa::Neon => false,
                Isa::Avx2 => has!("avx2") && has!("fma"),
                Isa::Avx512 => has!("avx512f") && has!("avx512bw") && has!("avx512vl"),
                Isa::Avx512Bf16 => Isa::Avx512.is_there() && has!("avx512bf16"),
                Isa::AmxBf16 => super::amx::available(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable || self == Isa::Neon && cfg!(target_arch = "aarch64")
        }
    }
}

/// The greatest of `choices` that is allowed and there.
fn best(choices: &[Isa], allowed: Isa) -> Isa {
    let mut usable = choices.iter().filter(|isa| **isa <= allowed && isa.is_there());
    usable.next_back().copied().unwrap_or(Isa::Portable)
}

static ALLOWED: LazyLock<Isa> =
    LazyLock::new(|| Isa::allowed(&std::env::var("CHANDLER_ISA").unwrap_or_default()));

/// What products of f32 use.
pub(super) fn of_f32() -> Isa {
    static CHOSEN: LazyLock<Isa> =
        LazyLock::new(|| best(&[Isa::Neon, Isa::Avx2, Isa::Avx512], *ALLOWED));
    *CHOSEN
}

/// What products of bf16 use.
pub(super) fn of_bf16() -> Isa {
    static CHOSEN: LazyLock<Isa> = LazyLock::new(|| {
        let wide = [Isa::Avx512, Isa::Avx512Bf16, Isa::AmxBf16];
        best(&[&[Isa::Neon, Isa::Avx2][..], &wide].concat(), *ALLOWED)
    });
    *CHOSEN
}

/// What loops over vectors use: the widest that the CPU has and the products may use.
pub(crate) fn vectors() -> Arch {
    #[cfg(target_arch = "x86_64")]
    match *ALLOWED {
        Isa::Portable => return Arch::Scalar,
        Isa::Avx2 => return pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
        _ => {}
    }
    Arch::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lowers_the_choice_and_never_raises_it() {
        let all = [Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::AmxBf16];
        let free = best(&all, Isa::allowed("anything"));
        assert!(free == Isa::Portable || free.is_there());
        assert!(all.iter().all(|isa| *isa <= free || !isa.is_there()));
        for (word, most) in
            [("portable", Isa::Portable), ("avx2", Isa::Avx2), ("avx512", Isa::Avx512Bf16)]
        {
            assert_eq!(best(&all, Isa::allowed(word)), free.min(most), "{word}");
        }
    }
}
