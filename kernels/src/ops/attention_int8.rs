//! The inner loops of attention over keys and values in int8.
//!
//! Queries and softmax weights are rounded to int16, finer than int8 by a factor of 130 to 258, so that products are summed as integers:
//! exactly, in any order, and with 32 multiply-adds an instruction where floats have 16 and have to be made first. The weights of a chunk have
//! one unit. Rounding 256 of them moves an answer by at most 128 / 32767 of what the largest adds to it, and the int8 value that this one
//! belongs to was off by as much, half of a step of 127.
//! Rows are taken in pairs, as the instructions do (`vpdpwssd`, `vpmaddwd`); many queries go by AMX tiles (module `tiles`). The units of a block's 16 positions are its last 16 floats.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512i;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

use super::attention::{Scores, at_once, tile_of};
use super::blocks::{Ahead, Blocks, LINE, ask};
use super::{LANES, TO_INTEGER};
#[cfg(target_arch = "x86_64")]
use crate::isa::{AmxInt8, Token};

/// Two rows of 16 numbers, interleaved.
type RowPair = [i8; 2 * LANES];

/// Pairs of a cache line.
const PER_LINE: usize = LINE / size_of::<RowPair>();
const _: () = assert!(PER_LINE == 2);

/// Positions of a block.
const POSITIONS: usize = LANES;

/// Pairs of rows of a panel of values in a block.
const PANEL: usize = POSITIONS / 2;

/// A block's rows in pairs.
#[inline(always)]
fn pairs_of(block: &[u8]) -> &[RowPair] {
    bytemuck::cast_slice::<u8, i8>(block).as_chunks().0
}

/// What a block's positions count in, behind the numbers.
#[inline(always)]
fn units_of(block: &[u8]) -> &[f32; POSITIONS] {
    let units = block.last_chunk::<{ size_of::<[f32; POSITIONS]>() }>().expect("a unit per position");
    bytemuck::cast_ref(units)
}

/// A query in int16, or what the softmax made of its scores in a chunk, in pairs of rows, and the unit they count in.
#[derive(Clone, Copy, Debug)]
pub struct IntWeights {
    pairs: [[i16; 2]; Self::PAIRS],
    unit: f32,
}

impl Default for IntWeights {
    fn default() -> Self {
        Self { pairs: [[0; 2]; _], unit: 0.0 }
    }
}

/// Sums over a chunk stay within int32.
const _: () = assert!(IntWeights::MAX_POSITIONS as i64 * i16::MAX as i64 * i8::MAX as i64 <= i32::MAX as i64);

impl IntWeights {
    /// Numbers of a query that there is room for.
    pub const MAX_NUMBERS: usize = 1024;
    const PAIRS: usize = Self::MAX_NUMBERS / 2;
    /// Positions of a chunk, at most.
    pub const MAX_POSITIONS: usize = 256;

    /// Takes a query.
    pub fn set_query(&mut self, query: &[f32]) {
        // Sums of so many products with int8 stay within int32.
        let largest = (i32::MAX / (127 * query.len().max(1) as i32)).min(i32::from(i16::MAX)) as f32;
        let ints = self.pairs.as_flattened_mut();
        ints[query.len()..query.len().next_multiple_of(2)].fill(0);
        self.unit = quantize_i16(query, largest, &mut ints[..query.len()]);
    }
}

#[inline(always)]
fn widen<const FMA: bool, const WIDE: bool>(row: &RowPair) -> [i16; 2 * LANES] {
    #[cfg(target_arch = "x86_64")]
    if WIDE {
        use std::arch::x86_64::*;
        // SAFETY: `WIDE` says that the CPU has AVX-512 with BW; the array holds the 32 bytes that are read.
        return unsafe {
            let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(row.as_ptr().cast()));
            std::mem::transmute::<__m512i, [i16; 2 * LANES]>(wide)
        };
    }
    #[cfg(target_arch = "x86_64")]
    if FMA {
        use std::arch::x86_64::*;
        let at: *const __m128i = row.as_ptr().cast();
        // SAFETY: `FMA` says that the CPU has AVX2; the array holds the two times 16 bytes that are read.
        return unsafe {
            std::mem::transmute::<[__m256i; 2], [i16; 2 * LANES]>([
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(1))),
            ])
        };
    }
    row.map(i16::from)
}

/// `vpdpwssd`, as it is: LLVM makes two instructions of the intrinsic where that shortens a chain, though none waits here.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut sums: __m512i, row: __m512i, weights: __m512i) -> __m512i {
    // SAFETY: reads and writes registers alone; the CPU has the instruction, as this function says.
    unsafe {
        std::arch::asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) sums, in(zmm_reg) row, in(zmm_reg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Adds both products of each lane.
#[inline(always)]
fn add_pair<const FMA: bool, const WIDE: bool, const VNNI: bool>(
    sums: [i32; LANES],
    row: [i16; 2 * LANES],
    weights: [i16; 2],
) -> [i32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if WIDE {
        use std::arch::x86_64::*;
        // SAFETY: `WIDE` says that the CPU has AVX-512 with BW, `VNNI` that it has that too; the arrays are as long as registers.
        return unsafe {
            let sums = std::mem::transmute::<[i32; LANES], __m512i>(sums);
            let row = std::mem::transmute::<[i16; 2 * LANES], __m512i>(row);
            let weights = _mm512_set1_epi32(std::mem::transmute::<[i16; 2], i32>(weights));
            std::mem::transmute::<__m512i, [i32; LANES]>(if VNNI {
                dpwssd(sums, row, weights)
            } else {
                _mm512_add_epi32(sums, _mm512_madd_epi16(row, weights))
            })
        };
    }
    #[cfg(target_arch = "x86_64")]
    if FMA {
        use std::arch::x86_64::*;
        // SAFETY: `FMA` says that the CPU has AVX2; the arrays are as long as two registers.
        return unsafe {
            let sums: [__m256i; 2] = std::mem::transmute(sums);
            let row: [__m256i; 2] = std::mem::transmute(row);
            let weights = _mm256_set1_epi32(std::mem::transmute::<[i16; 2], i32>(weights));
            std::mem::transmute::<[__m256i; 2], [i32; LANES]>([
                avx2::maddwd(sums[0], row[0], weights),
                avx2::maddwd(sums[1], row[1], weights),
            ])
        };
    }
    let product = |l: usize, i: usize| i32::from(row[2 * l + i]) * i32::from(weights[i]);
    std::array::from_fn(|l| sums[l].wrapping_add(product(l, 0) + product(l, 1)))
}

/// One pair of rows of [`Sums::add`].
#[inline(always)]
fn add_rows<const Q: usize, const P: usize, const FMA: bool, const WIDE: bool, const VNNI: bool>(
    weights: [[i16; 2]; Q],
    rows: [&RowPair; P],
    sums: &mut [[[i32; LANES]; P]; Q],
) {
    let mut wide = [[0i16; 2 * LANES]; P];
    for p in 0..P {
        wide[p] = widen::<FMA, WIDE>(rows[p]);
    }
    for q in 0..Q {
        for p in 0..P {
            sums[q][p] = add_pair::<FMA, WIDE, VNNI>(sums[q][p], wide[p], weights[q]);
        }
    }
}

/// Of `Q` queries in `P` panels, in registers. Rows of a single panel go to two sets of sums in turn, where there are registers for both:
/// fewer would wait for each other.
struct Sums<const Q: usize, const P: usize> {
    sums: [[[i32; LANES]; P]; Q],
    others: [[[i32; LANES]; P]; Q],
}

impl<const Q: usize, const P: usize> Sums<Q, P> {
    #[inline(always)]
    fn zeros() -> Self {
        Self { sums: [[[0; LANES]; P]; Q], others: [[[0; LANES]; P]; Q] }
    }

    /// Adds the products of the queries' weights, from pair `from` on, with the rows of panels.
    #[inline(always)]
    fn add<const FMA: bool, const WIDE: bool, const VNNI: bool>(
        &mut self,
        weights: &[IntWeights; Q],
        from: usize,
        panels: [&[RowPair]; P],
        ahead: [Ahead; P],
    ) {
        // One check for all accesses of a row: slices have one length, and queries lie at fixed distances from the first.
        let n_pairs = panels[0].len();
        let mut rows = panels;
        for p in 0..P {
            rows[p] = &panels[p][..n_pairs];
        }
        macro_rules! add {
            ($i:expr, $sums:ident) => {{
                let (mut of_queries, mut of_panels) = ([[0; 2]; Q], [&[0; 2 * LANES]; P]);
                for q in 0..Q {
                    of_queries[q] = weights[q].pairs[from + $i];
                }
                for p in 0..P {
                    of_panels[p] = &rows[p][$i];
                }
                add_rows::<Q, P, FMA, WIDE, VNNI>(of_queries, of_panels, &mut self.$sums);
            }};
        }
        let mut i = 0;
        #[cfg(target_arch = "x86_64")]
        if FMA && !WIDE && Q == 4 && P == 1 {
            let (lines, _) = rows[0].as_chunks();
            let sums = self.sums.as_flattened_mut().first_chunk_mut().expect("four");
            // SAFETY: `FMA` says that the CPU has AVX2.
            unsafe { avx2::add_lines(weights.first_chunk().expect("four"), from, lines, ahead[0], sums) };
            i = lines.len() * PER_LINE;
        }
        while i + PER_LINE <= n_pairs {
            for p in 0..P {
                ask::<WIDE, _>(rows[p][i].as_ptr(), ahead[p]);
            }
            add!(i, sums);
            if WIDE && P == 1 {
                add!(i + 1, others);
            } else {
                add!(i + 1, sums);
            }
            i += PER_LINE;
        }
        if i < n_pairs {
            add!(i, sums);
        }
    }

    /// Both sets together.
    #[inline(always)]
    fn totals<const WIDE: bool>(self) -> [[[i32; LANES]; P]; Q] {
        let Self { mut sums, others } = self;
        if WIDE && P == 1 {
            for q in 0..Q {
                for l in 0..LANES {
                    sums[q][0][l] += others[q][0][l];
                }
            }
        }
        sums
    }
}

/// The scores of `P` blocks of keys, from number `i` on and `spacing` apart.
#[inline(always)]
fn score<const Q: usize, const P: usize, const FMA: bool, const WIDE: bool, const VNNI: bool>(
    queries: &[IntWeights; Q],
    blocks: Blocks<'_>,
    (i, spacing): (usize, usize),
    height: usize,
    out: &mut [Scores; Q],
) {
    let (mut panels, mut ahead): ([&[RowPair]; P], _) = ([&[]; P], [Ahead::default(); P]);
    for p in 0..P {
        let i = i + p * spacing;
        panels[p] = &pairs_of(blocks.all[i])[..height];
        ahead[p] = blocks.ahead(i, 1);
        ask_for_units::<WIDE>(blocks.all[i], ahead[p]);
    }
    let mut sums = Sums::<Q, P>::zeros();
    sums.add::<FMA, WIDE, VNNI>(queries, 0, panels, ahead);
    let sums = sums.totals::<WIDE>();
    for q in 0..Q {
        for p in 0..P {
            let i = i + p * spacing;
            let units = units_of(blocks.all[i]);
            let mut scores = [0f32; LANES];
            for l in 0..LANES {
                scores[l] = queries[q].unit * sums[q][p][l] as f32 * units[l];
            }
            out[q][i * LANES..][..LANES].copy_from_slice(&scores);
        }
    }
}

/// Asks for the units of a block ahead, which have a cache line of their own. All of a chunk's at once, as it was begun, made its scores take
/// 1.17 times as long.
#[inline(always)]
fn ask_for_units<const NEAR: bool>(block: &[u8], ahead: Ahead) {
    ask::<NEAR, _>(units_of(block), ahead);
}

/// [`score`] for all blocks, `P` at a time, a part of all from each other: on Emerald Rapids four queries at depth 2048 took 1.06 times as long one
/// block after the other.
#[inline(always)]
fn scores_of<const Q: usize, const P: usize, const FMA: bool, const WIDE: bool, const VNNI: bool>(
    queries: &[IntWeights; Q],
    blocks: Blocks<'_>,
    height: usize,
    out: &mut [Scores; Q],
) {
    let spacing = blocks.all.len() / P;
    for i in 0..spacing {
        score::<Q, P, FMA, WIDE, VNNI>(queries, blocks, (i, spacing), height, out);
    }
    for i in P * spacing..blocks.all.len() {
        score::<Q, 1, FMA, WIDE, VNNI>(queries, blocks, (i, 0), height, out);
    }
}

/// [`scores_i8`] for any number of queries.
#[inline(always)]
fn scores<const FMA: bool, const WIDE: bool, const VNNI: bool>(
    queries: &[IntWeights],
    blocks: Blocks<'_>,
    height: usize,
    out: &mut [Scores],
) {
    let mut first = 0;
    while first < queries.len() {
        let n = at_once::<WIDE>(queries.len() - first);
        macro_rules! tile {
            ($q:literal, $p:literal) => {
                if let (Some(queries), Some(out)) = (queries[first..].first_chunk(), out[first..].first_chunk_mut()) {
                    scores_of::<$q, $p, FMA, WIDE, VNNI>(queries, blocks, height, out);
                }
            };
        }
        tile_of!(n, tile);
        first += n;
    }
}

/// Adds the values of a run of blocks to the sums, which begin with the first run, in `P` panels of dimensions, from number `panel` on.
#[inline(always)]
fn value<const Q: usize, const P: usize, const FMA: bool, const VNNI: bool>(
    weights: &[IntWeights; Q],
    blocks: Blocks<'_>,
    run: impl Iterator<Item = usize>,
    is_first: bool,
    panel: usize,
    out: &mut [i32],
    out_stride: usize,
) {
    let at = |q: usize, p: usize| q * out_stride + (panel + p) * LANES..q * out_stride + (panel + p + 1) * LANES;
    let mut sums = Sums::<Q, P>::zeros();
    if !is_first {
        for q in 0..Q {
            for p in 0..P {
                sums.sums[q][p].copy_from_slice(&out[at(q, p)]);
            }
        }
    }
    for i in run {
        let ahead = blocks.ahead(i, 1);
        if panel == 0 {
            ask_for_units::<true>(blocks.all[i], ahead);
        }
        let mut panels: [&[RowPair]; P] = [&[]; P];
        for p in 0..P {
            panels[p] = &pairs_of(blocks.all[i])[(panel + p) * PANEL..][..PANEL];
        }
        sums.add::<FMA, true, VNNI>(weights, i * PANEL, panels, [ahead; P]);
    }
    let sums = sums.totals::<true>();
    for q in 0..Q {
        for p in 0..P {
            out[at(q, p)].copy_from_slice(&sums[q][p]);
        }
    }
}

/// Adds the values of all blocks, one after the other, to the sums of each query, a panel of dimensions after the other.
#[inline(always)]
fn values_in_order<const Q: usize, const FMA: bool>(
    weights: &[IntWeights; Q],
    blocks: Blocks<'_>,
    out: [&mut [[i32; LANES]]; Q],
) {
    for i in 0..blocks.all.len() {
        let ahead = blocks.ahead(i, 1);
        ask_for_units::<false>(blocks.all[i], ahead);
        let panels = &pairs_of(blocks.all[i]).as_chunks::<PANEL>().0[..out[0].len()];
        for (panel, rows) in panels.iter().enumerate() {
            let mut sums = Sums::<Q, 1>::zeros();
            if i > 0 {
                for q in 0..Q {
                    sums.sums[q][0] = out[q][panel];
                }
            }
            sums.add::<FMA, false, false>(weights, i * PANEL, [rows], [ahead]);
            for q in 0..Q {
                out[q][panel] = sums.sums[q][0];
            }
        }
    }
}

/// [`value`] for all blocks and any number of panels, `P` at a time; what is left of them is added for one query after the other.
#[inline(always)]
fn values_in_runs<const Q: usize, const P: usize, const FMA: bool, const VNNI: bool>(
    weights: &[IntWeights; Q],
    blocks: Blocks<'_>,
    n_panels: usize,
    sums: &mut [i32],
    out_stride: usize,
) {
    // Many queries have their sums in registers from the first block to the last. A few wait for memory, not for instructions, and read four
    // places of a chunk at once: 0.85 of the time of two neighbours.
    const PLACES: usize = 4;
    let n_blocks = blocks.all.len();
    let n_runs = if Q > 4 { 1 } else { n_blocks.div_ceil(PLACES) };
    for i in 0..n_runs {
        let run = || (i..n_blocks).step_by(n_runs);
        let whole = n_panels - n_panels % P;
        for panel in (0..whole).step_by(P) {
            value::<Q, P, FMA, VNNI>(weights, blocks, run(), i == 0, panel, sums, out_stride);
        }
        for panel in whole..n_panels {
            for q in 0..Q {
                let (weights, sums) = (std::array::from_ref(&weights[q]), &mut sums[q * out_stride..]);
                value::<1, 1, FMA, VNNI>(weights, blocks, run(), i == 0, panel, sums, out_stride);
            }
        }
    }
}

/// [`values`] of `Q` queries. With AVX-512 blocks go together; narrower registers wait for instructions, and read memory in its order, which
/// prefetchers follow.
#[inline(always)]
fn values_of<const Q: usize, const P: usize, const FMA: bool, const WIDE: bool, const VNNI: bool>(
    weights: &[IntWeights; Q],
    blocks: Blocks<'_>,
    n_panels: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let sums: &mut [i32] = bytemuck::cast_slice_mut(out);
    if WIDE {
        values_in_runs::<Q, P, FMA, VNNI>(weights, blocks, n_panels, sums, out_stride);
    } else {
        let mut sums = sums.chunks_mut(out_stride);
        let of_queries = std::array::from_fn(|_| &mut sums.next().expect("one a query").as_chunks_mut().0[..n_panels]);
        values_in_order::<Q, FMA>(weights, blocks, of_queries);
    }
    for (out, weights) in out.chunks_mut(out_stride).zip(weights) {
        for out in &mut out[..n_panels * LANES] {
            *out = weights.unit * out.to_bits().cast_signed() as f32;
        }
    }
}

/// [`values_of`] for any number of queries.
#[inline(always)]
fn values<const FMA: bool, const WIDE: bool, const VNNI: bool>(
    weights: &[IntWeights],
    blocks: Blocks<'_>,
    n_panels: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let mut first = 0;
    while first < weights.len() {
        let n = at_once::<WIDE>(weights.len() - first);
        macro_rules! tile {
            ($q:literal, $p:literal) => {
                if let Some(weights) = weights[first..].first_chunk() {
                    let out = &mut out[first * out_stride..];
                    values_of::<$q, $p, FMA, WIDE, VNNI>(weights, blocks, n_panels, out, out_stride);
                }
            };
        }
        tile_of!(n, tile);
        first += n;
    }
}

/// Proof that the CPU has tiles, where so many queries are worth them: 12 take as long as by vectors, 48 two thirds of that.
#[cfg(target_arch = "x86_64")]
fn tiles_for(n: usize) -> Option<AmxInt8> {
    const FROM: usize = 16;
    static TILES: LazyLock<Option<AmxInt8>> = LazyLock::new(AmxInt8::detect);
    if n >= FROM { *TILES } else { None }
}

/// [`scores`] with AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn scores_vnni(queries: &[IntWeights], blocks: Blocks<'_>, height: usize, out: &mut [Scores]) {
    scores::<true, true, true>(queries, blocks, height, out);
}

/// [`values`] with AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn values_vnni(weights: &[IntWeights], blocks: Blocks<'_>, n_panels: usize, out: &mut [f32], out_stride: usize) {
    values::<true, true, true>(weights, blocks, n_panels, out, out_stride);
}

/// [`quantize_i16`].
#[inline(always)]
fn quantize(x: &[f32], largest: f32, out: &mut [i16]) -> f32 {
    // As bits, NaN is the largest.
    let max = f32::from_bits(x.iter().fold(0, |max, x| (x.to_bits() & (u32::MAX >> 1)).max(max)));
    let (unit, per_unit) = if max < 1e-30 { (0.0, 0.0) } else { (max / largest, largest / max) };
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x * per_unit + TO_INTEGER).to_bits() as u16 as i16;
    }
    unit
}

per_isa! {
    /// Rounds `x` to multiples of a unit, half to even. The unit, which is returned, makes the largest magnitude `largest` (at most 32767).
    /// It is not a finite number where one of `x` is not; where all are below 1e-30 they are taken for zeros.
    pub fn quantize_i16(x: &[f32], largest: f32, out: &mut [i16]) -> f32 {
        quantize(x, largest, out)
    }

    /// Takes what softmax made of the scores of a chunk, times the units of its blocks of values. Where a weight is 0 its value counts for
    /// nothing, whatever it is.
    pub fn quantize_weights(weights: &[f32], blocks: &[&[u8]], out: &mut IntWeights) {
        let mut products = [0f32; IntWeights::MAX_POSITIONS];
        let products = &mut products[..blocks.len() * POSITIONS];
        let weights = weights.as_chunks::<POSITIONS>().0;
        for ((products, weights), block) in products.as_chunks_mut::<POSITIONS>().0.iter_mut().zip(weights).zip(blocks) {
            let units = units_of(block);
            for i in 0..POSITIONS {
                let product = weights[i] * units[i];
                products[i] = if weights[i] == 0.0 { 0.0 } else { product };
            }
        }
        out.unit = quantize(products, f32::from(i16::MAX), &mut out.pairs.as_flattened_mut()[..products.len()]);
    }

    /// `out[q][16 i + l] = Σ query[q] · key` for key `l` of block `i`, in units of the query, a sum of integers, times the key's unit.
    ///
    /// `blocks` are `[pair of dimensions][16 positions][2]`, at least `height` pairs, and the units.
    pub fn scores_i8(
        queries: &[IntWeights], blocks: Blocks<'_>, height: usize, out: &mut [Scores],
    ) {
        #[cfg(target_arch = "x86_64")]
        if WIDE && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has VNNI, just tested (a cached load), and `WIDE` says that it has the rest.
            return unsafe {
                match tiles_for(queries.len()) {
                    Some(amx) => tiles::scores(amx, queries, blocks, height, out),
                    None => scores_vnni(queries, blocks, height, out),
                }
            };
        }
        scores::<FMA, WIDE, false>(queries, blocks, height, out);
    }

    /// `out[q] = Σ weight[q] · value` over the values of all blocks, a sum of integers.
    ///
    /// `blocks` are `[16 dimensions][pair of positions][16][2]`, `n_panels` times 16 dimensions, and the units; the sums of query `q` are at
    /// `out[q · out_stride..]`.
    pub fn values_i8(
        weights: &[IntWeights], blocks: Blocks<'_>, n_panels: usize, out: &mut [f32], out_stride: usize,
    ) {
        #[cfg(target_arch = "x86_64")]
        if WIDE && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: as for the scores.
            return unsafe {
                match tiles_for(weights.len()) {
                    Some(amx) if n_panels.is_multiple_of(2) => tiles::values(amx, weights, blocks, n_panels, out, out_stride),
                    _ => values_vnni(weights, blocks, n_panels, out, out_stride),
                }
            };
        }
        values::<FMA, WIDE, false>(weights, blocks, n_panels, out, out_stride);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
