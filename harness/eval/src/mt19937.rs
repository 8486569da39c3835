//! CPython's `random.Random(seed)` and its `sample`, bit for bit: few-shot examples must be the ones that
//! lm-evaluation-harness draws, or no prompt is comparable.
//!
//! Sources: CPython `Modules/_randommodule.c` (Matsumoto and Nishimura's MT19937, seeded by `init_by_array`) and
//! `Lib/random.py` (`sample`, `_randbelow_with_getrandbits`), unchanged from 3.2 to 3.13.

/// State size of MT19937.
const N: usize = 624;
/// Offset of the recurrence.
const M: usize = 397;

/// A Mersenne Twister with CPython's seeding and derived draws.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)` for a non-negative integer.
    pub fn new(seed: u64) -> Self {
        // `random_seed`: the absolute value in 32-bit words, least significant first, at least one word.
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = if high == 0 { &[low][..] } else { &[low, high][..] };
        let mut random = Self { state: [0; N], next: N };
        random.init_by_array(key);
        random
    }

    fn init_genrand(&mut self, seed: u32) {
        self.state[0] = seed;
        for i in 1..N {
            let last = self.state[i - 1];
            self.state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
    }

    fn init_by_array(&mut self, key: &[u32]) {
        self.init_genrand(19_650_218);
        let (mut i, mut j) = (1, 0);
        let mixed = |state: &[u32; N], i: usize| state[i - 1] ^ (state[i - 1] >> 30);
        for _ in 0..N.max(key.len()) {
            let mix = mixed(&self.state, i).wrapping_mul(1_664_525);
            self.state[i] = (self.state[i] ^ mix).wrapping_add(key[j]).wrapping_add(j as u32);
            (i, j) = (i + 1, (j + 1) % key.len());
            if i == N {
                self.state[0] = self.state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let mix = mixed(&self.state, i).wrapping_mul(1_566_083_941);
            self.state[i] = (self.state[i] ^ mix).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                self.state[0] = self.state[N - 1];
                i = 1;
            }
        }
        self.state[0] = 0x8000_0000;
    }

    /// The next 32 random bits (`genrand_uint32`).
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `_randbelow(n)` for `n >= 1`: draws of `n.bit_length()` bits until one is below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        let shift = n.leading_zeros();
        loop {
            let drawn = self.next_u32() >> shift;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(population), count)`, or `None` where CPython raises: more wanted than there are.
    pub fn sample(&mut self, population: u32, count: u32) -> Option<Vec<u32>> {
        if count > population {
            return None;
        }
        // A small population is drawn from a list that shrinks, a large one with a set of those already drawn; `setsize` is
        // CPython's estimate of the set's size, and decides which.
        let mut setsize: u64 = 21;
        if count > 5 {
            // 4 ** ceil(log(3 * count, 4)). 3 * count is never a power of 4, so the rounding of log() cannot matter.
            let mut power = 1;
            while power < 3 * u64::from(count) {
                power *= 4;
            }
            setsize += power;
        }
        let mut result = Vec::with_capacity(count as usize);
        if u64::from(population) <= setsize {
            let mut pool: Vec<u32> = (0..population).collect();
            for i in 0..count {
                let left = population - i;
                let j = self.below(left) as usize;
                result.push(pool[j]);
                pool[j] = pool[left as usize - 1];
            }
        } else {
            while result.len() < count as usize {
                let j = self.below(population);
                if !result.contains(&j) {
                    result.push(j);
                }
            }
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values printed by CPython 3.11.7.

    #[test]
    fn words_match_cpython() {
        for (seed, words) in [(1234, WORDS_1234), (0, WORDS_0), (0x1_2345_6789_abcd, WORDS_LONG)] {
            let mut random = PythonRandom::new(seed);
            assert_eq!([(); 4].map(|()| random.next_u32()), words, "seed {seed}");
        }
        // Beyond one regeneration of the state.
        let mut random = PythonRandom::new(1234);
        assert_eq!((0..2000).map(|_| random.next_u32()).last(), Some(WORD_2000));
    }

    #[test]
    fn samples_match_cpython() {
        let mut random = PythonRandom::new(1234);
        for (population, expected) in SAMPLES {
            let count = expected.len() as u32;
            assert_eq!(random.sample(*population, count).as_deref(), Some(*expected), "sample({population}, {count})");
        }
        assert_eq!(random.sample(3, 4), None);
        assert_eq!(random.sample(0, 0), Some(vec![]));
    }

    const WORDS_1234: [u32; 4] = [4150886329, 3342196574, 1892932127, 501869158];
    const WORDS_0: [u32; 4] = [3626764237, 1654615998, 3255389356, 3823568514];
    const WORDS_LONG: [u32; 4] = [2457164146, 1427531487, 410273751, 1336509619];
    const WORD_2000: u32 = 881902874;
    const SAMPLES: &[(u32, &[u32])] = &[
        (7473, &[6374, 3610, 957, 61, 742]),
        (7473, &[7462, 6610, 4769, 286, 5501]),
        (21, &[2, 3, 11, 7, 0]),
        (22, &[0, 11, 20, 19, 15]),
        (10, &[9, 7, 2, 0, 1, 6, 4, 8, 5, 3]),
        (85, &[8, 69, 59, 84, 76, 11]),
        (86, &[65, 74, 5, 34, 71, 8]),
        (1, &[0]),
        (300, &[246, 181, 136, 127, 102, 232, 271, 9]),
    ];
}
