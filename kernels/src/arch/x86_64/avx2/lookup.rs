//! What the AVX2 byte-shuffle kernels share: looking up 32 rows in a table of 16 entries, and adding entries of 8 to 11
//! bits up in int16 without joining their halves one by one.
//!
//! Let row `i` have the entries `256 h + l`, `h` and `l` its looked-up bytes. Two neighbouring rows share a 16-bit
//! lane. Three sums, all modulo 2^16, are kept: `all` of the low bytes' lanes as they are (even row plus 256 times the
//! odd row), `odd` of the odd rows' low bytes (the lanes shifted right by 8), and `high` of the high bytes (modulo 2^8,
//! byte by byte: they count 256-fold). Then
//!
//! - odd row: `odd + 256 · high`,
//! - even row: `all - 256 · odd + 256 · high`,
//!
//! modulo 2^16, which is the row's sum where that fits into int16. So a block of groups is as long as that holds,
//! whatever the parts do; then the sums are widened to int32. Per group and 32 rows: 2 shuffles, a shift and 3 adds,
//! where joining by `vpunpck` takes 4 shuffles, of which Zen 3 does 2 a cycle, and 2 adds.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::tables::{BIAS, Table};

/// Row tiles that take turns, block by block: a block of tables is used for all of them while it is in L1, and the
/// packed weights are read from as many places (see [`STREAMS`](crate::kernel::STREAMS)).
const TILES: usize = 4;

/// A block of one row tile for one or more tokens.
pub struct Job {
    /// Which of the range's row tiles.
    pub tile: usize,
    /// Which steps along `k`.
    pub steps: Range<usize>,
    /// The first token.
    pub token: usize,
    /// How many: `tokens_at_once`, or 1.
    pub n_tokens: usize,
}

/// All jobs of a call, ordered for the caches; their sums add up.
pub fn jobs(
    n_tiles: usize,
    n_steps: usize,
    steps_at_once: usize,
    m: usize,
    tokens_at_once: usize,
) -> impl Iterator<Item = Job> {
    let in_groups = m / tokens_at_once * tokens_at_once;
    let tokens = move || {
        let groups = (0..in_groups).step_by(tokens_at_once).map(move |token| (token, tokens_at_once));
        groups.chain((in_groups..m).map(|token| (token, 1)))
    };
    let blocks = move || (0..n_steps).step_by(steps_at_once).map(move |at| at..n_steps.min(at + steps_at_once));
    (0..n_tiles).step_by(TILES).flat_map(move |first| {
        blocks().flat_map(move |steps| {
            tokens().flat_map(move |(token, n_tokens)| {
                let steps = steps.clone();
                (first..n_tiles.min(first + TILES)).map(move |tile| Job { tile, steps: steps.clone(), token, n_tokens })
            })
        })
    })
}

/// The bytes of 32 rows' entries: the low halves, and the high ones where there are any.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub(super) low: __m256i,
    pub(super) high: __m256i,
}

/// Looks up 32 nibbles. Bits 4 to 6 of a byte are ignored, bit 7 must be 0.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn look<const H: usize>(table: &Table<H>, codes: __m256i) -> Bytes {
    let mut halves = [_mm256_setzero_si256(); 2];
    for h in 0..H {
        // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
        let half = unsafe { _mm_loadu_si128(table[h].as_ptr().cast()) };
        halves[h] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), codes);
    }
    Bytes { low: halves[0], high: halves[1] }
}

impl Bytes {
    /// `-entry - 1` in the rows where `flip` is 0xFF: the complement of both halves.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn complement<const H: usize>(self, flip: __m256i) -> Self {
        let high = if H == 2 { _mm256_xor_si256(self.high, flip) } else { self.high };
        Self { low: _mm256_xor_si256(self.low, flip), high }
    }

    /// Small numbers without a high half.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn small(low: __m256i) -> Self {
        Self { low, high: _mm256_setzero_si256() }
    }
}

/// The sums of 32 rows. See the module.
#[derive(Clone, Copy)]
pub struct Sums {
    all: __m256i,
    odd: __m256i,
    high: __m256i,
}

impl Sums {
    /// Nothing yet.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn zero() -> Self {
        let zero = _mm256_setzero_si256();
        Self { all: zero, odd: zero, high: zero }
    }

    /// From the three sums.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn from_parts(all: __m256i, odd: __m256i, high: __m256i) -> Self {
        Self { all, odd, high }
    }

    /// Adds an entry to every row.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn add(&mut self, bytes: Bytes) {
        self.all = _mm256_add_epi16(self.all, bytes.low);
        self.odd = _mm256_add_epi16(self.odd, _mm256_srli_epi16::<8>(bytes.low));
        self.high = _mm256_add_epi8(self.high, bytes.high);
    }

    /// Widens the sums of `n_groups` entries and adds them to `acc`. Tables of one byte are biased (see [`crate::tables`]).
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn widen<const H: usize>(self, n_groups: usize, acc: &mut [i32; 32]) {
        let bias =
            if H == 1 { _mm256_set1_epi16((n_groups * usize::from(BIAS)) as i16) } else { _mm256_setzero_si256() };
        let even = _mm256_add_epi16(self.all, _mm256_slli_epi16::<8>(_mm256_sub_epi8(self.high, self.odd)));
        let odd = _mm256_add_epi16(self.odd, _mm256_andnot_si256(_mm256_set1_epi16(0xFF), self.high));
        let (even, odd) = (_mm256_sub_epi16(even, bias), _mm256_sub_epi16(odd, bias));
        // Rows 0..8 and 16..24, rows 8..16 and 24..32.
        let (first, second) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
        let [a, b, c, d] = acc.as_chunks_mut::<8>().0 else { return };
        add_to(a, _mm256_castsi256_si128(first));
        add_to(b, _mm256_castsi256_si128(second));
        add_to(c, _mm256_extracti128_si256::<1>(first));
        add_to(d, _mm256_extracti128_si256::<1>(second));
    }
}

/// Adds 8 int16 to 8 int32.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_to(acc: &mut [i32; 8], values: __m128i) {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    let old = unsafe { _mm256_loadu_si256(acc.as_ptr().cast()) };
    let new = _mm256_add_epi32(old, _mm256_cvtepi16_epi32(values));
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(acc.as_mut_ptr().cast(), new) };
}

/// Adds 16 int16 to 16 int32.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_rows(acc: &mut [i32; 16], values: __m256i) {
    if let [first, second] = acc.as_chunks_mut().0 {
        add_to(first, _mm256_castsi256_si128(values));
        add_to(second, _mm256_extracti128_si256::<1>(values));
    }
}

/// Half `half` of 64 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_half(bytes: &[u8; 64], half: usize) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_chunks::<32>().0[half].as_ptr().cast()) }
}
