//! The inner loops of attention: products of a few queries, or of what softmax made of their scores, with the rows of a KV cache.

use std::ops::Range;

use half::f16;
use half::slice::HalfBitsSliceExt;

use super::blocks::{Ahead, Blocks, LINE, ask};
use super::{LANES, madd};

/// A query. Every one has room for the same number, so that those of several are at fixed distances from one address; they are no multiple of
/// 4 KB, at which caches take them for each other.
pub type Query = [f32; 1040];

/// What a query makes of the positions of a chunk, at most 256: its scores, or what softmax made of them. Closer together than queries: on
/// Emerald Rapids the scores of 24 queries by tiles took 1.1 times as long with a page of memory for each.
pub type Scores = [f32; 272];

/// What a cache is made of.
trait Number: Copy + 'static {
    /// A block's numbers.
    fn of(block: &[u8]) -> &[Self];

    /// Sixteen numbers as they are computed with. `FMA` and `WIDE` as `per_isa` has them.
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES];
}

impl Number for f32 {
    #[inline(always)]
    fn of(block: &[u8]) -> &[Self] {
        bytemuck::cast_slice(block)
    }

    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        *numbers
    }
}

impl Number for f16 {
    #[inline(always)]
    fn of(block: &[u8]) -> &[Self] {
        bytemuck::cast_slice::<u8, u16>(block).reinterpret_cast()
    }

    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            use std::arch::x86_64::*;
            // SAFETY: `WIDE` says that the CPU has AVX-512; the array holds the 32 bytes that are read.
            return unsafe {
                let halves = _mm256_loadu_si256(numbers.as_ptr().cast());
                // `_mm512_cvtph_ps` suppresses exceptions: such an instruction takes nothing from memory, and is two steps.
                let wide = _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves);
                std::mem::transmute::<__m512, [f32; LANES]>(wide)
            };
        }
        #[cfg(target_arch = "x86_64")]
        if FMA {
            use std::arch::x86_64::*;
            let at: *const __m128i = numbers.as_ptr().cast();
            // SAFETY: `FMA` says that the CPU has F16C; the array holds the two times 16 bytes that are read.
            return unsafe {
                std::mem::transmute::<[__m256; 2], [f32; LANES]>([
                    _mm256_cvtph_ps(_mm_loadu_si128(at)),
                    _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
                ])
            };
        }
        #[cfg(target_arch = "aarch64")]
        if FMA {
            return crate::dense::neon::halves(numbers);
        }
        numbers.map(f16::to_f32)
    }
}

/// `weight · row + sums`.
#[inline(always)]
fn add_product<const FMA: bool, const WIDE: bool>(weight: f32, row: [f32; LANES], sums: [f32; LANES]) -> [f32; LANES] {
    // As an intrinsic: of a loop over lanes LLVM makes one over 16 queries, which gathers.
    #[cfg(target_arch = "x86_64")]
    if WIDE {
        use std::arch::x86_64::*;
        // SAFETY: `WIDE` says that the CPU has AVX-512; the arrays are as long as registers.
        return unsafe {
            let [row, sums] = [row, sums].map(|lanes| std::mem::transmute::<[f32; LANES], __m512>(lanes));
            std::mem::transmute::<__m512, [f32; LANES]>(_mm512_fmadd_ps(_mm512_set1_ps(weight), row, sums))
        };
    }
    let mut sums = sums;
    for l in 0..LANES {
        sums[l] = madd::<FMA>(weight, row[l], sums[l]);
    }
    sums
}

/// Adds the products of a row of `P` panels to [`Sums`].
#[inline(always)]
fn add_row<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: [f32; Q],
    row: [&[N; LANES]; P],
    sums: &mut Sums<Q, P>,
) {
    let mut wide = [[0f32; LANES]; P];
    for p in 0..P {
        wide[p] = N::widen::<FMA, WIDE>(row[p]);
    }
    for q in 0..Q {
        for p in 0..P {
            sums[q][p] = add_product::<FMA, WIDE>(weights[q], wide[p], sums[q][p]);
        }
    }
}

/// Of `Q` queries in `P` panels, in registers.
type Sums<const Q: usize, const P: usize> = [[[f32; LANES]; P]; Q];

/// Adds the products of the queries' weights, from number `from` on, with rows of panels, one row after the other.
#[inline(always)]
fn add_rows<N: Number, const L: usize, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[[f32; L]; Q],
    from: usize,
    panels: [&[[N; LANES]]; P],
    ahead: [Ahead; P],
    sums: &mut Sums<Q, P>,
) {
    // One check for all accesses of a row: slices have one length, and queries lie at fixed distances from the first.
    let n_rows = panels[0].len();
    let mut rows = panels;
    for p in 0..P {
        rows[p] = &panels[p][..n_rows];
    }
    macro_rules! add {
        ($i:expr) => {{
            let (mut of_queries, mut of_panels) = ([0.0; Q], [&rows[0][$i]; P]);
            for q in 0..Q {
                of_queries[q] = weights[q][from + $i];
            }
            for p in 0..P {
                of_panels[p] = &rows[p][$i];
            }
            add_row::<N, Q, P, FMA, WIDE>(of_queries, of_panels, sums);
        }};
    }
    // A cache line at a time.
    let per_line = (LINE / size_of::<[N; LANES]>()).max(1);
    let mut i = 0;
    while i + per_line <= n_rows {
        for p in 0..P {
            ask::<true, _>(rows[p][i].as_ptr(), ahead[p]);
        }
        for j in i..i + per_line {
            add!(j);
        }
        i += per_line;
    }
    while i < n_rows {
        add!(i);
        i += 1;
    }
}

/// The scores of blocks `i` to `i + P` of keys.
#[inline(always)]
fn score<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    queries: &[Query; Q],
    blocks: Blocks<'_>,
    i: usize,
    head_dim: usize,
    out: &mut [Scores; Q],
) {
    let (mut panels, mut ahead): ([&[[N; LANES]]; P], _) = ([&[]; P], [Ahead::default(); P]);
    for p in 0..P {
        panels[p] = &N::of(blocks.all[i + p]).as_chunks().0[..head_dim];
        ahead[p] = blocks.ahead(i + p, P);
    }
    let mut sums = [[[0f32; LANES]; P]; Q];
    add_rows::<N, _, Q, P, FMA, WIDE>(queries, 0, panels, ahead, &mut sums);
    for q in 0..Q {
        for p in 0..P {
            out[q][(i + p) * LANES..][..LANES].copy_from_slice(&sums[q][p]);
        }
    }
}

/// [`score`] for all blocks, `P` at a time.
#[inline(always)]
fn scores_of<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    queries: &[Query; Q],
    blocks: Blocks<'_>,
    head_dim: usize,
    out: &mut [Scores; Q],
) {
    let mut i = 0;
    while i + P <= blocks.all.len() {
        score::<N, Q, P, FMA, WIDE>(queries, blocks, i, head_dim, out);
        i += P;
    }
    while i < blocks.all.len() {
        score::<N, Q, 1, FMA, WIDE>(queries, blocks, i, head_dim, out);
        i += 1;
    }
}

/// Adds the values at `positions`, which `Q` queries see, in `P` panels of dimensions, from number `panel` on. The sums are in registers from
/// the first block to the last.
#[inline(always)]
fn value<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Scores; Q],
    blocks: Blocks<'_>,
    positions: Range<usize>,
    panel: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let at = |q: usize, p: usize| q * out_stride + (panel + p) * LANES..q * out_stride + (panel + p + 1) * LANES;
    let mut sums = [[[0f32; LANES]; P]; Q];
    for q in 0..Q {
        for p in 0..P {
            sums[q][p].copy_from_slice(&out[at(q, p)]);
        }
    }
    for i in positions.start / LANES..positions.end.div_ceil(LANES) {
        let first = i * LANES;
        let within = positions.start.max(first)..positions.end.min(first + LANES);
        let block: &[[N; LANES]] = N::of(blocks.all[i]).as_chunks().0;
        let mut rows: [&[[N; LANES]]; P] = [&[]; P];
        for p in 0..P {
            rows[p] = &block[(panel + p) * LANES..][..LANES][within.start - first..within.end - first];
        }
        add_rows::<N, _, Q, P, FMA, WIDE>(weights, within.start, rows, [blocks.ahead(i, 1); P], &mut sums);
    }
    for q in 0..Q {
        for p in 0..P {
            out[at(q, p)].copy_from_slice(&sums[q][p]);
        }
    }
}

/// [`value`] for all panels, `P` at a time; what is left of them is added for one query after the other.
#[inline(always)]
fn values_of<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Scores; Q],
    blocks: Blocks<'_>,
    positions: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    let n_panels = N::of(blocks.all[0]).len() / (LANES * LANES);
    let whole = n_panels - n_panels % P;
    for panel in (0..whole).step_by(P) {
        value::<N, Q, P, FMA, WIDE>(weights, blocks, positions.clone(), panel, out, out_stride);
    }
    for panel in whole..n_panels {
        for q in 0..Q {
            let (weights, out) = (std::array::from_ref(&weights[q]), &mut out[q * out_stride..]);
            value::<N, 1, 1, FMA, WIDE>(weights, blocks, positions.clone(), panel, out, out_stride);
        }
    }
}

/// How many of `left` queries are taken at once: as many as there are registers for the sums of.
#[inline(always)]
pub(super) fn at_once<const WIDE: bool>(left: usize) -> usize {
    match left {
        12.. if WIDE => 12,
        8.. if WIDE => 8,
        _ => left.min(4),
    }
}

/// Runs `$tile!(queries, panels)` for `$n` queries, as [`at_once`] has them, and so many panels that no sum waits for the row before.
macro_rules! tile_of {
    ($n:expr, $tile:ident) => {
        // Outside of the choice, where rustc drops the other half before LLVM optimises it.
        if WIDE {
            match $n {
                12 => $tile!(12, 2),
                8 => $tile!(8, 2),
                4 => $tile!(4, 4),
                3 => $tile!(3, 4),
                2 => $tile!(2, 4),
                _ => $tile!(1, 4),
            }
        } else {
            match $n {
                4 => $tile!(4, 1),
                3 => $tile!(3, 1),
                2 => $tile!(2, 2),
                _ => $tile!(1, 4),
            }
        }
    };
}
pub(super) use tile_of;

/// [`scores_f32`] of any numbers.
#[inline(always)]
fn scores<N: Number, const FMA: bool, const WIDE: bool>(
    queries: &[Query],
    blocks: Blocks<'_>,
    head_dim: usize,
    out: &mut [Scores],
) {
    let mut first = 0;
    while first < queries.len() {
        let n = at_once::<WIDE>(queries.len() - first);
        macro_rules! tile {
            ($q:literal, $p:literal) => {
                if let (Some(queries), Some(out)) = (queries[first..].first_chunk(), out[first..].first_chunk_mut()) {
                    scores_of::<N, $q, $p, FMA, WIDE>(queries, blocks, head_dim, out);
                }
            };
        }
        tile_of!(n, tile);
        first += n;
    }
}

/// [`add_values_f32`] of any numbers.
#[inline(always)]
fn values<N: Number, const FMA: bool, const WIDE: bool>(
    weights: &[Scores],
    blocks: Blocks<'_>,
    seen: &[Range<usize>],
    out: &mut [f32],
    out_stride: usize,
) {
    let n_heads = weights.len() / seen.len();
    let seen_by = |query: usize| seen[query / n_heads].clone();
    let mut first = 0;
    while first < weights.len() {
        let n = at_once::<WIDE>(weights.len() - first);
        // What all see. Before and behind that each alone sees what is left to it. One loop: the code of every tile is there once.
        let mut every = seen_by(first);
        for q in first + 1..first + n {
            every = every.start.max(seen_by(q).start)..every.end.min(seen_by(q).end);
        }
        every.end = every.end.max(every.start);
        for step in 0..2 * n + 1 {
            let (first, n, positions) = if step < n {
                let seen = seen_by(first + step);
                (first + step, 1, seen.start..seen.end.min(every.start))
            } else if step == n {
                (first, n, every.clone())
            } else {
                let q = first + step - n - 1;
                (q, 1, every.end..seen_by(q).end)
            };
            if positions.is_empty() {
                continue;
            }
            macro_rules! tile {
                ($q:literal, $p:literal) => {
                    if let Some(weights) = weights[first..].first_chunk() {
                        let out = &mut out[first * out_stride..];
                        values_of::<N, $q, $p, FMA, WIDE>(weights, blocks, positions, out, out_stride);
                    }
                };
            }
            tile_of!(n, tile);
        }
        first += n;
    }
}

per_isa! {
    /// `out[q][16 i + l] = Σ_d query[q][d] · key[d]` for key `l` of block `i`; `blocks` are `[head_dim][16 keys]`.
    pub fn scores_f32(queries: &[Query], blocks: Blocks<'_>, head_dim: usize, out: &mut [Scores]) {
        scores::<f32, FMA, WIDE>(queries, blocks, head_dim, out);
    }

    /// [`scores_f32`] with keys in half precision, which are widened in registers.
    pub fn scores_f16(queries: &[Query], blocks: Blocks<'_>, head_dim: usize, out: &mut [Scores]) {
        scores::<f16, FMA, WIDE>(queries, blocks, head_dim, out);
    }

    /// `out[q] += Σ_i weights[q][i] · value[i]` over the positions that query `q` sees, counted from the first block on, one after the other, so
    /// that a sum depends on no other query. `seen` has them for each token, of which there is one at least; their queries, as many
    /// for each, follow each other.
    ///
    /// `blocks` are `[dimensions / 16][16 values][16]`; the sums of query `q` are at `out[q · out_stride..]`.
    pub fn add_values_f32(
        weights: &[Scores], blocks: Blocks<'_>, seen: &[Range<usize>], out: &mut [f32], out_stride: usize,
    ) {
        values::<f32, FMA, WIDE>(weights, blocks, seen, out, out_stride);
    }

    /// [`add_values_f32`] with values in half precision.
    pub fn add_values_f16(
        weights: &[Scores], blocks: Blocks<'_>, seen: &[Range<usize>], out: &mut [f32], out_stride: usize,
    ) {
        values::<f16, FMA, WIDE>(weights, blocks, seen, out, out_stride);
    }
}

#[cfg(test)]
mod tests {
    use half::slice::HalfFloatSliceExt;

    use super::*;

    /// Whole numbers, so that sums are exact in any order.
    fn numbers(n: usize, modulus: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 7 % modulus) as f32 - 5.0).collect()
    }

    /// Rows of `n` numbers, each with room for more.
    fn rows_of<const L: usize>(rows: &[f32], n: usize) -> Vec<[f32; L]> {
        let mut all = vec![[f32::NAN; _]; rows.len() / n];
        all.iter_mut().zip(rows.chunks_exact(n)).for_each(|(all, row)| all[..n].copy_from_slice(row));
        all
    }

    fn blocks<'a>(all: &'a [&'a [u8]]) -> Blocks<'a> {
        Blocks { all, next: &[] }
    }

    /// Blocks of `len` numbers.
    fn blocks_of(numbers: &[f32], len: usize) -> Vec<&[u8]> {
        numbers.chunks_exact(len).map(bytemuck::cast_slice).collect()
    }

    /// [`blocks_of`] in half precision.
    fn half_blocks_of(numbers: &[f16], len: usize) -> Vec<&[u8]> {
        numbers.chunks_exact(len).map(|block| bytemuck::cast_slice(block.reinterpret_cast())).collect()
    }

    fn halves_of(x: &[f32]) -> Vec<f16> {
        x.iter().copied().map(f16::from_f32).collect()
    }

    #[test]
    fn scores_of_any_shape_are_right_in_both_types() {
        for (n_blocks, head_dim, n_queries) in
            [(1, 128, 4), (16, 128, 16), (3, 7, 3), (2, 5, 7), (5, 16, 11), (9, 20, 1), (7, 9, 37), (4, 16, 2)]
        {
            let keys = numbers(n_blocks * head_dim * LANES, 11);
            let queries = rows_of(&numbers(n_queries * head_dim, 13), head_dim);
            let mut expected: Vec<Scores> = vec![[f32::NAN; _]; n_queries];
            for (query, expected) in queries.iter().zip(&mut expected) {
                for (keys, expected) in keys.chunks_exact(head_dim * LANES).zip(expected.chunks_exact_mut(LANES)) {
                    for (lane, expected) in expected.iter_mut().enumerate() {
                        *expected = (0..head_dim).map(|d| query[d] * keys[d * LANES + lane]).sum();
                    }
                }
            }
            let len = head_dim * LANES;
            let mut out: Vec<Scores> = vec![[f32::NAN; _]; n_queries];
            let mut out_f16 = out.clone();
            scores_f32(&queries, blocks(&blocks_of(&keys, len)), head_dim, &mut out);
            let halves = halves_of(&keys);
            scores_f16(&queries, blocks(&half_blocks_of(&halves, len)), head_dim, &mut out_f16);
            for q in 0..n_queries {
                let n = n_blocks * LANES;
                assert_eq!(out[q][..n], expected[q][..n], "{n_blocks} blocks, query {q} of {n_queries}");
                assert_eq!(out_f16[q][..n], expected[q][..n], "{n_blocks} blocks, query {q} of {n_queries}, f16");
            }
        }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one token, which sees a range")]
    fn values_of_any_shape_are_right_in_both_types() {
        // Blocks, panels, what the tokens see, heads.
        for (n_blocks, n_panels, seen, n_heads) in [
            (1, 8, vec![0..16], 4),
            (2, 8, vec![3..25], 1),
            (4, 3, vec![17..31], 7),
            (16, 8, vec![0..256], 16),
            (3, 2, vec![0..37], 37),
            (3, 4, vec![16..16], 2),
            (5, 9, vec![15..65], 3),
            (2, 7, vec![0..31], 20),
            // Each a position more than the one before, with and without a window.
            (3, 8, (0..6).map(|i| 0..31 + i).collect(), 4),
            (3, 5, (0..6).map(|i| 13 + i..31 + i).collect(), 4),
            (2, 4, (0..9).map(|i| i..i + 3).collect(), 5),
            (2, 2, (0..20).map(|i| i..i + 1).collect(), 1),
            (2, 3, vec![0..0, 0..1, 0..2, 32..32], 3),
        ] {
            let n_queries = seen.len() * n_heads;
            let stride = n_panels * LANES + 2;
            let values = numbers(n_blocks * n_panels * LANES * LANES, 11);
            let mut weights = rows_of(&numbers(n_queries * n_blocks * LANES, 13), n_blocks * LANES);
            let start = numbers(n_queries * stride - 2, 17);
            let mut expected = start.clone();
            for (q, weights) in weights.iter_mut().enumerate() {
                for i in seen[q / n_heads].clone() {
                    for d in 0..n_panels * LANES {
                        let row = (i / LANES * n_panels + d / LANES) * LANES + i % LANES;
                        expected[q * stride + d] += weights[i] * values[row * LANES + d % LANES];
                    }
                }
                // What is not seen counts for nothing, whatever it is.
                weights[..seen[q / n_heads].start].fill(f32::NAN);
                weights[seen[q / n_heads].end..].fill(f32::NAN);
            }
            let len = n_panels * LANES * LANES;
            let (mut out, mut out_f16) = (start.clone(), start);
            let all = blocks_of(&values, len);
            add_values_f32(&weights, blocks(&all), &seen, &mut out, stride);
            assert_eq!(out, expected, "{n_panels} panels, {seen:?}, {n_heads} heads");
            let halves = halves_of(&values);
            let all = half_blocks_of(&halves, len);
            add_values_f16(&weights, blocks(&all), &seen, &mut out_f16, stride);
            assert_eq!(out_f16, expected, "{n_panels} panels, {seen:?}, {n_heads} heads, f16");
        }
    }

    #[test]
    fn halves_of_every_kind_widen_as_the_library_has_it() {
        // One query whose only number is 1: the score is the key.
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for halves in halves.chunks(16 * LANES) {
            let mut wide: [Scores; 1] = [[0.0; _]];
            scores_f16(&[[1.0; _]], blocks(&half_blocks_of(halves, LANES)), 1, &mut wide);
            for (half, wide) in halves.iter().zip(&wide[0]) {
                assert!(half.to_f32() == *wide || (half.is_nan() && wide.is_nan()), "{half:?}: {wide}");
            }
        }
    }

    #[test]
    fn sums_depend_neither_on_the_queries_beside_them_nor_on_pieces() {
        let numbers: Vec<f32> = (0..2 * 3 * LANES * LANES).map(|i| (i as f32 * 0.37).sin()).collect();
        let all = blocks_of(&numbers, 3 * LANES * LANES);
        let rows: Vec<f32> = (0..21 * 32).map(|i| (i as f32 * 0.73).cos()).collect();
        let (queries, weights) = (rows_of(&rows, 32), rows_of(&rows, 32));
        let mut together = vec![0.0; 21 * 48];
        let mut scores: Vec<Scores> = vec![[0.0; _]; 21];
        let seen: Vec<Range<usize>> = (0..7).map(|token| 3 * token / 2..25 + token).collect();
        add_values_f32(&weights, blocks(&all), &seen, &mut together, 48);
        scores_f32(&queries, blocks(&all), 32, &mut scores);
        for q in 0..21 {
            let mut alone = vec![0.0; 48];
            let seen = &seen[q / 3];
            for positions in [seen.start..seen.start + 4, seen.start + 4..21, 21..seen.end] {
                add_values_f32(&weights[q..=q], blocks(&all), &[positions], &mut alone, 48);
            }
            assert_eq!(alone, together[q * 48..][..48]);
            let mut alone: [Scores; 1] = [[0.0; _]];
            scores_f32(&queries[q..=q], blocks(&all), 32, &mut alone);
            assert_eq!(alone[0][..32], scores[q][..32]);
        }
    }
}
