//! How an input is made from one of the corpus: a few edits, each of which a reader may stumble over.

use crate::Corpus;

/// Inputs are cut here.
pub const MOST_BYTES: usize = 16 << 10;

/// Numbers at which readers break.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "-0.0",
    "0.1",
    "null",
    "1e-320",
];

/// One change of an input. Places and lengths are taken modulo what there is.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Another value of a bit.
    Flip {
        /// The byte.
        at: usize,
        /// Its bit.
        bit: u8,
    },
    /// Other bytes in place of none.
    Bytes {
        /// Where.
        at: usize,
        /// Which.
        bytes: Vec<u8>,
    },
    /// A word of the format.
    Word {
        /// Where.
        at: usize,
        /// Which of the corpus's words.
        word: usize,
    },
    /// A number at which readers break in place of the next one.
    Number {
        /// Where the search for digits begins.
        at: usize,
        /// Which.
        number: usize,
    },
    /// Fewer bytes.
    Remove {
        /// Where.
        at: usize,
        /// How many.
        length: usize,
    },
    /// A stretch, several times.
    Repeat {
        /// Where.
        at: usize,
        /// Of how many bytes.
        length: usize,
        /// How often.
        times: usize,
    },
    /// A stretch of another input.
    Splice {
        /// Where it is put.
        at: usize,
        /// Which input.
        other: usize,
        /// Where it begins there.
        from: usize,
        /// Of how many bytes.
        length: usize,
    },
}

/// The input `seed` of the corpus with all edits made, at most [`MOST_BYTES`] long.
pub fn edited(corpus: &Corpus, seed: usize, edits: &[Edit]) -> Vec<u8> {
    let mut input = corpus.inputs[seed % corpus.inputs.len()].clone();
    for edit in edits {
        edit.make(&mut input, corpus);
        input.truncate(MOST_BYTES);
    }
    input
}

impl Edit {
    fn make(&self, input: &mut Vec<u8>, corpus: &Corpus) {
        let place = |at: usize, input: &[u8]| at % (input.len() + 1);
        match self {
            Self::Flip { at, bit } => {
                let length = input.len().max(1);
                if let Some(byte) = input.get_mut(at % length) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Bytes { at, bytes } => insert(input, place(*at, input), bytes),
            Self::Word { at, word } => {
                if let Some(index) = word.checked_rem(corpus.words.len()) {
                    insert(input, place(*at, input), &corpus.words[index]);
                }
            }
            Self::Number { at, number } => {
                let at = place(*at, input);
                let Some(start) = input[at..].iter().position(u8::is_ascii_digit) else { return };
                let start = at + start;
                let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number = NUMBERS[number % NUMBERS.len()].bytes();
                input.splice(start..start + digits, number);
            }
            Self::Remove { at, length } => {
                let (start, end) = stretch(input, *at, *length);
                input.drain(start..end);
            }
            Self::Repeat { at, length, times } => {
                let (start, end) = stretch(input, *at, *length);
                let times = (times % 64).min(MOST_BYTES / (end - start).max(1));
                let again = input[start..end].repeat(times);
                insert(input, end, &again);
            }
            Self::Splice { at, other, from, length } => {
                let other = &corpus.inputs[other % corpus.inputs.len()];
                let (start, end) = stretch(other, *from, *length);
                insert(input, place(*at, input), &other[start..end]);
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn stretch(input: &[u8], at: usize, length: usize) -> (usize, usize) {
    let start = at % (input.len() + 1);
    (start, start + length % (input.len() - start + 1))
}

/// Edits that the same seed repeats (SplitMix64: Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_word(&mut self) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) as usize
    }

    /// An input and some edits of it.
    pub fn input(&mut self, corpus: &Corpus) -> Vec<u8> {
        let seed = self.next_word();
        let count = 1 + self.next_word() % 6;
        let edits: Vec<Edit> = (0..count).map(|_| self.edit()).collect();
        edited(corpus, seed, &edits)
    }

    fn edit(&mut self) -> Edit {
        let at = self.next_word();
        match self.next_word() % 8 {
            0 => Edit::Flip { at, bit: self.next_word() as u8 },
            1 => {
                let length = 1 + self.next_word() % 4;
                Edit::Bytes { at, bytes: (0..length).map(|_| self.next_word() as u8).collect() }
            }
            2 | 3 => Edit::Word { at, word: self.next_word() },
            4 => Edit::Number { at, number: self.next_word() },
            5 => Edit::Remove { at, length: self.next_word() % 64 },
            6 => Edit::Repeat { at, length: self.next_word() % 64, times: self.next_word() },
            _ => {
                let (other, from) = (self.next_word(), self.next_word());
                Edit::Splice { at, other, from, length: self.next_word() % 256 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_edit_of_any_input_is_one_and_short() {
        let corpus = Corpus {
            inputs: vec![vec![], b"a1".to_vec(), vec![b'7'; MOST_BYTES]],
            words: vec![b"{}".to_vec()],
        };
        let wordless = Corpus { words: vec![], ..corpus.clone() };
        let mut random = Random::new(1);
        let mut differ = 0;
        for _ in 0..5000 {
            let input = random.input(&corpus);
            assert!(input.len() <= MOST_BYTES && random.input(&wordless).len() <= MOST_BYTES);
            differ += usize::from(!corpus.inputs.contains(&input));
        }
        assert!(differ > 3000, "{differ}");
    }

    #[test]
    fn a_seed_repeats_its_inputs() {
        let corpus = Corpus { inputs: vec![b"abc 12".to_vec()], words: vec![] };
        let inputs = |seed| {
            let mut random = Random::new(seed);
            (0..20).map(|_| random.input(&corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }
}
