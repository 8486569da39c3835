//! The lookups of [`super::bitplane_few`]: tables of a group of tokens, which step each is for, and where blocks end.

use std::arch::x86_64::*;
use std::ops::Range;

use super::interleaved::{load, store_bytes};
use crate::activation::QuantizedActivations;
use crate::kernel::Prepared;
use crate::layout::bitplane::{self, GROUP, TILE_K};
use crate::team::{SharedMut, Team};

/// Tokens that share the extraction of nibbles, where there are as many left.
pub const TOGETHER: usize = 4;
/// Steps of a block, at most.
const MAX_BLOCK: usize = 256;
/// And of [`TOGETHER`] tokens, whose tables stay in the L1 cache while row tiles take turns.
const MAX_BLOCK_TOGETHER: usize = 128;
/// Steps of a vector of activations.
const VECTOR_STEPS: usize = 32 / TILE_K;
/// Steps of every block but the last, at least: 8 vectors, whose `Σ |x|` is at most 4064 each.
const MIN_BLOCK: usize = 8 * VECTOR_STEPS;

/// The tables of a lookup: of the first four columns of its step, and of the other four.
pub type Tables = [u8; 32];

/// How a group of tokens, [`TOGETHER`] or one, lies in a [`Prepared`] input. Bytes: the tables of every lookup, token after token, then for each of
/// them its step, counted from the block's first, in a byte. Sums: for every block behind which lookup and which step it ends; what
/// follows the last step is left from before.
pub struct Layout {
    /// Steps of a row.
    pub n_steps: usize,
    /// Room for so many.
    pub lookups: usize,
    blocks: usize,
}

impl Layout {
    /// For tokens of `k` values.
    pub fn of(k: usize) -> Self {
        let n_steps = k.div_ceil(TILE_K);
        // Each step twice, and the padding of the last vector.
        Self { n_steps, lookups: 2 * n_steps + VECTOR_STEPS, blocks: n_steps.div_ceil(MIN_BLOCK).max(1) }
    }

    /// Bytes of a group.
    pub fn bytes(&self, n_tokens: usize) -> usize {
        (self.lookups * (n_tokens * size_of::<Tables>() + 1)).next_multiple_of(64)
    }

    /// All groups of `m` tokens.
    pub fn groups(&self, m: usize) -> impl Iterator<Item = Group> {
        (0..m / TOGETHER + m % TOGETHER).map(move |index| self.group(m, index))
    }

    /// Group `index` of `m` tokens.
    pub fn group(&self, m: usize, index: usize) -> Group {
        let whole = m / TOGETHER;
        let (before, alone) = (index.min(whole), index.saturating_sub(whole));
        let n_tokens = if index < whole { TOGETHER } else { 1 };
        let (start, sums) = (before * self.bytes(TOGETHER) + alone * self.bytes(1), 2 * self.blocks * index);
        Group {
            token: before * TOGETHER + alone,
            n_tokens,
            bytes: start..start + self.bytes(n_tokens),
            sums: sums..sums + 2 * self.blocks,
        }
    }
}

/// Tokens from `token` on, and where they lie.
pub struct Group {
    pub token: usize,
    pub n_tokens: usize,
    pub bytes: Range<usize>,
    pub sums: Range<usize>,
}

/// In both halves, for each column of a group: 1 where it counts in an entry, else -1.
const COUNTS: [[u8; 32]; GROUP] = {
    let mut counts = [[0; 32]; GROUP];
    let mut i = 0;
    while i < 32 * GROUP {
        let (column, code) = (i / 32, i % 32);
        counts[column][code] = (2 * bitplane::CODES[code % 16][column] - 1).cast_unsigned();
        i += 1;
    }
    counts
};

/// Makes the tables, and the lists of steps and blocks.
///
/// # Safety
/// The CPU has AVX2.
pub unsafe fn prepare(team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
    let layout = Layout::of(x.k);
    let (n_groups, end) = layout.groups(x.m).fold((0, 0), |(n, _), group| (n + 1, group.bytes.end));
    (out.m, out.stride) = (x.m, layout.bytes(1));
    out.bytes.ensure_len(end);
    out.sums.resize(n_groups * 2 * layout.blocks, 0);
    let (bytes, ends) = (SharedMut::new(&mut out.bytes[..]), SharedMut::new(&mut out.sums));
    team.split(n_groups, 1, |groups| {
        for group in groups.map(|index| layout.group(x.m, index)) {
            // SAFETY: a group is handed out once, and its bytes and ends are its own.
            let (bytes, ends) = unsafe { (bytes.slice(group.bytes), ends.slice(group.sums).as_chunks_mut().0) };
            let (tables, steps) = bytes.split_at_mut(layout.lookups * group.n_tokens * size_of::<Tables>());
            let tables: &mut [Tables] = tables.as_chunks_mut().0;
            let row = |t| x.row(group.token + t);
            // SAFETY: the caller's CPU has AVX2.
            unsafe {
                if group.n_tokens == TOGETHER {
                    prepare_group::<TOGETHER>(std::array::from_fn(row), tables.as_chunks_mut().0, steps, ends);
                } else {
                    prepare_group::<1>([row(0)], tables.as_chunks_mut().0, steps, ends);
                }
            }
        }
    });
}

#[target_feature(enable = "avx2")]
fn prepare_group<const T: usize>(x: [&[i8]; T], tables: &mut [[Tables; T]], steps: &mut [u8], ends: &mut [[i32; 2]]) {
    let (largest, second_half) = (_mm256_set1_epi32(255), _mm256_set1_epi32(0xFFFF_0000u32.cast_signed()));
    let (bytes, words) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let most = if T == 1 { MAX_BLOCK } else { MAX_BLOCK_TOGETHER };
    let mut out =
        Lookups { tables, steps, n: 0, first: 0, again: [(0, [0; T]); MAX_BLOCK], n_again: 0, ends: ends.iter_mut() };
    // What no sum of this block exceeds, of each token.
    let mut bounds = [0; T];
    let n_steps = x[0].len().div_ceil(TILE_K);
    for step in (0..n_steps).step_by(VECTOR_STEPS) {
        let (mut vectors, mut added) = ([_mm256_setzero_si256(); T], [0; T]);
        for t in 0..T {
            let x = &x[t][step * TILE_K..];
            let mut last = [0; 32];
            let x = x.first_chunk().unwrap_or_else(|| {
                last[..x.len()].copy_from_slice(x);
                &last
            });
            vectors[t] = load(bytemuck::cast_ref::<[i8; 32], _>(x));
            added[t] = sum(_mm256_abs_epi8(vectors[t]));
        }
        let too_much = (0..T).any(|t| bounds[t] + added[t] > i16::MAX.into());
        if too_much || step + VECTOR_STEPS - out.first > most {
            out.end_block(step);
            bounds = [0; T];
        }
        let (mut columns, mut others) = ([[0; T]; VECTOR_STEPS], [[0; T]; VECTOR_STEPS]);
        let mut which = 0;
        for t in 0..T {
            bounds[t] += added[t];
            let groups = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(vectors[t]), bytes), words);
            let too_large = _mm256_cmpgt_epi32(groups, largest);
            let apart = _mm256_and_si256(too_large, second_half);
            // A bit for each byte, of which a step has 8.
            which |= _mm256_movemask_epi8(too_large).cast_unsigned();
            let first = steps_of(_mm256_andnot_si256(apart, vectors[t]));
            let second = steps_of(_mm256_and_si256(apart, vectors[t]));
            for i in 0..VECTOR_STEPS {
                (columns[i][t], others[i][t]) = (first[i], second[i]);
            }
        }
        out.push(step, &columns);
        while which != 0 {
            let i = which.trailing_zeros() as usize / TILE_K;
            which &= !(0xFF << (i * TILE_K));
            out.push_again(step + i, others[i]);
        }
    }
    // The padding of the last vector.
    out.n -= n_steps.next_multiple_of(VECTOR_STEPS) - n_steps;
    out.end_block(n_steps);
}

/// The lookups of a group, while they are listed.
struct Lookups<'a, const T: usize> {
    tables: &'a mut [[Tables; T]],
    steps: &'a mut [u8],
    n: usize,
    ends: std::slice::IterMut<'a, [i32; 2]>,
    /// The first step of the block.
    first: usize,
    /// What the block looks up once more at its end: step and columns, zeros for tokens that need it not.
    again: [(u8, [i64; T]); MAX_BLOCK],
    n_again: usize,
}

impl<const T: usize> Lookups<'_, T> {
    /// Steps from `step` on, of which these are the columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn push<const STEPS: usize>(&mut self, step: usize, columns: &[[i64; T]; STEPS]) {
        let tables = self.tables[self.n..].first_chunk_mut::<STEPS>().expect("room for all");
        let steps = self.steps[self.n..].first_chunk_mut::<STEPS>().expect("room for all");
        for i in 0..STEPS {
            steps[i] = (step - self.first + i) as u8;
            for t in 0..T {
                make(columns[i][t], &mut tables[i][t]);
            }
        }
        self.n += STEPS;
    }

    #[inline]
    fn push_again(&mut self, step: usize, columns: [i64; T]) {
        self.again[self.n_again] = ((step - self.first) as u8, columns);
        self.n_again += 1;
    }

    #[target_feature(enable = "avx2")]
    fn end_block(&mut self, step: usize) {
        for i in 0..std::mem::take(&mut self.n_again) {
            let (step, columns) = self.again[i];
            self.push(self.first + usize::from(step), &[columns]);
        }
        self.first = step;
        *self.ends.next().expect("activations within ±127") = [self.n as i32, step as i32];
    }
}

/// The sum of unsigned bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(bytes: __m256i) -> i32 {
    let sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums)))
}

/// The tables of eight columns whose groups fit into bytes: of every column `x` or 0 to an entry where it counts, else `-x` or 0.
#[inline]
#[target_feature(enable = "avx2")]
fn make(columns: i64, tables: &mut Tables) {
    let columns = _mm256_set1_epi64x(columns);
    let zero = _mm256_setzero_si256();
    let mut sums = zero;
    for (column, counts) in COUNTS.iter().enumerate() {
        let of_group = _mm256_set_m128i(_mm_set1_epi8((GROUP + column) as i8), _mm_set1_epi8(column as i8));
        let x = _mm256_sign_epi8(_mm256_shuffle_epi8(columns, of_group), load(counts));
        sums = _mm256_add_epi8(sums, _mm256_max_epi8(x, zero));
    }
    store_bytes(tables, sums);
}

/// The columns of each of four steps.
#[inline]
#[target_feature(enable = "avx2")]
fn steps_of(x: __m256i) -> [i64; VECTOR_STEPS] {
    let mut steps = [0; VECTOR_STEPS];
    store_bytes(bytemuck::cast_mut(&mut steps), x);
    steps
}
