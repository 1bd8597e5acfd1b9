//! MT19937 (Matsumoto and Nishimura 1998), the generator behind `torch.randperm` on the CPU.

const N: usize = 624;
const M: usize = 397;

pub(crate) struct MersenneTwister {
    state: [u32; N],
    next: usize,
}

impl MersenneTwister {
    /// Seeded as PyTorch seeds it, by the low 32 bits.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = [0; N];
        state[0] = seed as u32;
        for i in 1..N {
            let before: u32 = state[i - 1];
            state[i] =
                1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// High word first, as PyTorch's 64-bit draws.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let (high, low) = (self.next_u32(), self.next_u32());
        (u64::from(high) << 32) | u64::from(low)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}
