//! The inner loops of attention: products of a few queries (or their weights) with the rows of a KV cache, and the exponentials
//! between them.

use std::ops::Range;

use half::f16;

use super::{LANES, exp, madd, max_of, sum_lanes};

/// As many queries share one KV head in one token, about: more are many tokens.
const TOGETHER: usize = 4;

/// Bytes from what is read to what is asked for into the L1 cache, at least, and from there to what is asked for from memory.
pub(super) const NEAR: usize = 4 << 10;
const FAR: usize = 12 << 10;

/// The weights of a query. Every query has room for the same number, so that those of several are at fixed distances from one address; they
/// are no multiple of 4 KB, at which caches take them for each other.
pub type Weights = [f32; 1040];

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// What a cache is made of.
trait Number: Copy + 'static {
    /// Sixteen numbers as they are computed with. `FMA` and `WIDE` as `per_isa` has them.
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES];
}

impl Number for f32 {
    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        *numbers
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen<const FMA: bool, const WIDE: bool>(numbers: &[Self; LANES]) -> [f32; LANES] {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            use std::arch::x86_64::*;
            // SAFETY: `WIDE` says that the CPU has AVX-512; the array holds the 32 bytes that are read.
            return unsafe {
                let halves = _mm256_loadu_si256(numbers.as_ptr().cast());
                std::mem::transmute::<__m512, [f32; LANES]>(_mm512_cvtph_ps(halves))
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

/// Asks for the cache line `near` bytes behind the number at `at`, where attention will read next, since prefetchers come too late where
/// blocks are this short. Where few queries share what is read it comes from memory, and is asked for further ahead too.
#[inline(always)]
pub(super) fn fetch_behind<N, const Q: usize>(at: *const N, near: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T2};
        crate::arch::x86_64::prefetch::<_MM_HINT_T0>(at.cast::<u8>().wrapping_add(near));
        if Q <= TOGETHER {
            crate::arch::x86_64::prefetch::<_MM_HINT_T2>(at.cast::<u8>().wrapping_add(near + FAR));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, near);
}

/// Asks for bytes that attention will read soon.
pub fn ask_for(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE) {
        crate::arch::x86_64::prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
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
fn add_rows<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Weights; Q],
    from: usize,
    panels: [&[[N; LANES]]; P],
    near: usize,
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
            fetch_behind::<N, Q>(rows[p][i].as_ptr(), near);
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

/// The scores of `P` blocks of keys, for `out` from `column` on.
#[inline(always)]
fn score<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    queries: &[Weights; Q],
    blocks: &[&[N]; P],
    head_dim: usize,
    column: usize,
    out: &mut [Weights; Q],
) {
    let mut panels: [&[[N; LANES]]; P] = [&[]; P];
    for p in 0..P {
        panels[p] = &blocks[p].as_chunks().0[..head_dim];
    }
    let near = (P * head_dim * size_of::<[N; LANES]>()).max(NEAR);
    let mut sums = [[[0f32; LANES]; P]; Q];
    add_rows::<N, Q, P, FMA, WIDE>(queries, 0, panels, near, &mut sums);
    for q in 0..Q {
        for p in 0..P {
            out[q][column + p * LANES..][..LANES].copy_from_slice(&sums[q][p]);
        }
    }
}

/// [`score`] for any number of blocks, `P` at a time.
#[inline(always)]
fn scores_of<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    queries: &[Weights; Q],
    blocks: &[&[N]],
    head_dim: usize,
    out: &mut [Weights; Q],
) {
    let (together, rest) = blocks.as_chunks::<P>();
    for (i, blocks) in together.iter().enumerate() {
        score::<N, Q, P, FMA, WIDE>(queries, blocks, head_dim, i * P * LANES, out);
    }
    for (i, block) in rest.iter().enumerate() {
        score::<N, Q, 1, FMA, WIDE>(queries, &[block], head_dim, (together.len() * P + i) * LANES, out);
    }
}

/// Adds the values at `positions` in `P` panels of dimensions, from number `panel` on. The sums are in registers from the first block to the last.
#[inline(always)]
fn value<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Weights; Q],
    blocks: &[&[N]],
    positions: &Range<usize>,
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
        let rows = positions.start.max(first) - first..positions.end.min(first + LANES) - first;
        let all = blocks[i].as_chunks().0;
        let mut panels: [&[[N; LANES]]; P] = [&[]; P];
        for p in 0..P {
            panels[p] = &all[(panel + p) * LANES..][..LANES][rows.clone()];
        }
        let near = size_of_val(blocks[i]).max(NEAR);
        add_rows::<N, Q, P, FMA, WIDE>(weights, first + rows.start, panels, near, &mut sums);
    }
    for q in 0..Q {
        for p in 0..P {
            out[at(q, p)].copy_from_slice(&sums[q][p]);
        }
    }
}

/// [`value`] for any number of panels, `P` at a time.
#[inline(always)]
fn values_of<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Weights; Q],
    blocks: &[&[N]],
    positions: &Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    let n_panels = blocks[0].len() / (LANES * LANES);
    let mut panel = 0;
    while panel + P <= n_panels {
        value::<N, Q, P, FMA, WIDE>(weights, blocks, positions, panel, out, out_stride);
        panel += P;
    }
    while panel < n_panels {
        value::<N, Q, 1, FMA, WIDE>(weights, blocks, positions, panel, out, out_stride);
        panel += 1;
    }
}

/// Runs `$tiles!(first, queries, panels)` for `$n` queries, some at a time: as many sums as there are registers for, and enough of them
/// that none waits for the row before.
macro_rules! some_at_a_time {
    ($n:expr, $tiles:ident) => {{
        let n = $n;
        let mut first = 0;
        while first < n {
            first += match (WIDE, n - first) {
                (true, 12..) => {
                    $tiles!(first, 12, 2);
                    12
                }
                (true, 8..) => {
                    $tiles!(first, 8, 2);
                    8
                }
                (true, 4..) => {
                    $tiles!(first, 4, 4);
                    4
                }
                (true, 3) => {
                    $tiles!(first, 3, 4);
                    3
                }
                (true, 2) => {
                    $tiles!(first, 2, 4);
                    2
                }
                (true, _) => {
                    $tiles!(first, 1, 4);
                    1
                }
                (false, 4..) => {
                    $tiles!(first, 4, 1);
                    4
                }
                (false, 3) => {
                    $tiles!(first, 3, 1);
                    3
                }
                (false, 2) => {
                    $tiles!(first, 2, 2);
                    2
                }
                (false, _) => {
                    $tiles!(first, 1, 4);
                    1
                }
            };
        }
    }};
}
pub(super) use some_at_a_time;

/// [`scores_f32`] of any numbers.
#[inline(always)]
fn scores<N: Number, const FMA: bool, const WIDE: bool>(
    queries: &[Weights],
    blocks: &[&[N]],
    head_dim: usize,
    out: &mut [Weights],
) {
    macro_rules! tiles {
        ($first:expr, $q:literal, $p:literal) => {
            if let (Some(queries), Some(out)) = (queries[$first..].first_chunk(), out[$first..].first_chunk_mut()) {
                scores_of::<N, $q, $p, FMA, WIDE>(queries, blocks, head_dim, out);
            }
        };
    }
    some_at_a_time!(queries.len(), tiles);
}

/// [`add_values_f32`] of any numbers.
#[inline(always)]
fn values<N: Number, const FMA: bool, const WIDE: bool>(
    weights: &[Weights],
    blocks: &[&[N]],
    positions: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    macro_rules! tiles {
        ($first:expr, $q:literal, $p:literal) => {
            if let Some(weights) = weights[$first..].first_chunk() {
                let out = &mut out[$first * out_stride..];
                values_of::<N, $q, $p, FMA, WIDE>(weights, blocks, &positions, out, out_stride);
            }
        };
    }
    some_at_a_time!(weights.len(), tiles);
}

per_isa! {
    /// `out[q][16 i + l] = Σ_d query[q][d] · key[d]` for key `l` of block `i`; `blocks` are `[head_dim][16 keys]`.
    pub fn scores_f32(queries: &[Weights], blocks: &[&[f32]], head_dim: usize, out: &mut [Weights]) {
        scores::<f32, FMA, WIDE>(queries, blocks, head_dim, out);
    }

    /// [`scores_f32`] with keys in half precision, which are widened in registers.
    pub fn scores_f16(queries: &[Weights], blocks: &[&[f16]], head_dim: usize, out: &mut [Weights]) {
        scores::<f16, FMA, WIDE>(queries, blocks, head_dim, out);
    }

    /// `out[q] += Σ_i weights[q][i] · value[i]` over `positions`, counted from the first block on, one after the other, so that a sum in pieces
    /// has the bits of the whole and none depends on the other queries.
    ///
    /// `blocks` are `[dimensions / 16][16 values][16]`; the sums of query `q` are at `out[q · out_stride..]`.
    pub fn add_values_f32(
        weights: &[Weights], blocks: &[&[f32]], positions: Range<usize>, out: &mut [f32], out_stride: usize,
    ) {
        values::<f32, FMA, WIDE>(weights, blocks, positions, out, out_stride);
    }

    /// [`add_values_f32`] with values in half precision.
    pub fn add_values_f16(
        weights: &[Weights], blocks: &[&[f16]], positions: Range<usize>, out: &mut [f32], out_stride: usize,
    ) {
        values::<f16, FMA, WIDE>(weights, blocks, positions, out, out_stride);
    }

    /// Of `scores`, a multiple of 16, those in `seen` become `e^(score - max)`; returns `(max, Σ e^(score - max))`, which is `(-∞, 0)` where
    /// none is seen. The others mean nothing, neither before nor after.
    pub fn exponentials(scores: &mut [f32], seen: Range<usize>) -> (f32, f32) {
        if seen.is_empty() {
            return (f32::NEG_INFINITY, 0.0);
        }
        // Whole registers to the end: -∞ is never the largest, and adds nothing.
        let (first, last) = (seen.start / LANES * LANES, seen.end.next_multiple_of(LANES));
        scores[first..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..last].fill(f32::NEG_INFINITY);
        let scores = &mut scores[first..last];
        let max = max_of([&*scores], f32::NEG_INFINITY, |[score]| score);
        let mut lanes = [0f32; LANES];
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            for i in 0..LANES {
                chunk[i] = exp::<FMA>(chunk[i] - max);
                lanes[i] += chunk[i];
            }
        }
        (max, sum_lanes(lanes))
    }

    /// `y = a · y + b · x`.
    pub fn mix(a: f32, y: &mut [f32], b: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = madd::<FMA>(a, *y, b * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_ulp() {
        for i in -8700..=0 {
            let x = i as f32 / 100.0;
            let mut scores = [f32::NAN; LANES];
            scores[..2].copy_from_slice(&[x + 1.0, 1.0]);
            let (max, sum) = exponentials(&mut scores, 0..2);
            let expected = f64::from(x + 1.0 - 1.0).exp();
            assert!((f64::from(scores[0]) - expected).abs() <= expected * 4e-7 + 1e-44, "{x}: {scores:?} {expected}");
            assert_eq!((max, sum, scores[1]), (1.0, scores[0] + 1.0, 1.0));
        }
    }

    #[test]
    fn exponentials_are_of_what_is_seen() {
        for seen in [0..0, 0..1, 0..16, 3..4, 15..17, 5..48, 20..33, 16..32, 47..48, 48..48] {
            let mut scores: Vec<f32> = (0..48).map(|i| if i % 5 == 0 { 90.0 } else { i as f32 / 7.0 }).collect();
            let old = scores.clone();
            let (max, sum) = exponentials(&mut scores, seen.clone());
            let of = &old[seen.clone()];
            assert_eq!(max, of.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{seen:?}");
            let expected: f64 = of.iter().map(|&x| f64::from(x - max).exp()).sum();
            assert!((f64::from(sum) - expected).abs() <= expected * 1e-6, "{seen:?}: {sum} {expected}");
            for (new, old) in scores[seen].iter().zip(of) {
                assert!((f64::from(*new) - f64::from(old - max).exp()).abs() < 1e-6);
            }
        }
        let mut bad = [1.0; LANES];
        bad[3] = f32::NAN;
        assert!(exponentials(&mut bad, 0..5).1.is_nan(), "a score that is no number has to go on");
        assert_eq!(exponentials(&mut bad, 5..9).1, 4.0);
    }

    /// Whole numbers, so that sums are exact in any order.
    fn numbers(n: usize, modulus: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 7 % modulus) as f32 - 5.0).collect()
    }

    /// Room for as many queries as there are rows of weights.
    fn weights_of(rows: &[f32], n: usize) -> Vec<Weights> {
        let mut all = vec![[f32::NAN; _]; rows.len() / n];
        all.iter_mut().zip(rows.chunks_exact(n)).for_each(|(all, row)| all[..n].copy_from_slice(row));
        all
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
            let queries = weights_of(&numbers(n_queries * head_dim, 13), head_dim);
            let mut expected: Vec<Weights> = vec![[f32::NAN; _]; n_queries];
            for (query, expected) in queries.iter().zip(&mut expected) {
                for (keys, expected) in keys.chunks_exact(head_dim * LANES).zip(expected.chunks_exact_mut(LANES)) {
                    for (lane, expected) in expected.iter_mut().enumerate() {
                        *expected = (0..head_dim).map(|d| query[d] * keys[d * LANES + lane]).sum();
                    }
                }
            }
            let len = head_dim * LANES;
            let mut out: Vec<Weights> = vec![[f32::NAN; _]; n_queries];
            let mut out_f16 = out.clone();
            scores_f32(&queries, &keys.chunks_exact(len).collect::<Vec<_>>(), head_dim, &mut out);
            scores_f16(&queries, &halves_of(&keys).chunks_exact(len).collect::<Vec<_>>(), head_dim, &mut out_f16);
            for q in 0..n_queries {
                let n = n_blocks * LANES;
                assert_eq!(out[q][..n], expected[q][..n], "{n_blocks} blocks, query {q} of {n_queries}");
                assert_eq!(out_f16[q][..n], expected[q][..n], "{n_blocks} blocks, query {q} of {n_queries}, f16");
            }
        }
    }

    #[test]
    fn values_of_any_shape_are_right_in_both_types() {
        // Blocks, panels, positions, queries.
        for (n_blocks, n_panels, positions, n_queries) in [
            (1, 8, 0..16, 4),
            (2, 8, 3..25, 1),
            (4, 3, 17..31, 7),
            (16, 8, 0..256, 16),
            (3, 2, 0..37, 37),
            (3, 4, 16..16, 2),
            (5, 9, 15..65, 3),
            (2, 7, 0..31, 20),
        ] {
            let stride = n_panels * LANES + 2;
            let values = numbers(n_blocks * n_panels * LANES * LANES, 11);
            let weights = weights_of(&numbers(n_queries * n_blocks * LANES, 13), n_blocks * LANES);
            let start = numbers(n_queries * stride - 2, 17);
            let mut expected = start.clone();
            for (q, weights) in weights.iter().enumerate() {
                for i in positions.clone() {
                    for d in 0..n_panels * LANES {
                        let row = (i / LANES * n_panels + d / LANES) * LANES + i % LANES;
                        expected[q * stride + d] += weights[i] * values[row * LANES + d % LANES];
                    }
                }
            }
            let len = n_panels * LANES * LANES;
            let (mut out, mut out_f16) = (start.clone(), start);
            let blocks: Vec<&[f32]> = values.chunks_exact(len).collect();
            add_values_f32(&weights, &blocks, positions.clone(), &mut out, stride);
            assert_eq!(out, expected, "{n_panels} panels, {positions:?}, {n_queries} queries");
            let halves = halves_of(&values);
            let blocks: Vec<&[f16]> = halves.chunks_exact(len).collect();
            add_values_f16(&weights, &blocks, positions.clone(), &mut out_f16, stride);
            assert_eq!(out_f16, expected, "{n_panels} panels, {positions:?}, {n_queries} queries, f16");
        }
    }

    #[test]
    fn halves_of_every_kind_widen_as_the_library_has_it() {
        // One query whose only number is 1: the score is the key.
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for halves in halves.chunks(1024) {
            let mut wide: [Weights; 1] = [[0.0; _]];
            scores_f16(&[[1.0; _]], &halves.chunks(LANES).collect::<Vec<_>>(), 1, &mut wide);
            for (half, wide) in halves.iter().zip(&wide[0]) {
                assert!(half.to_f32() == *wide || (half.is_nan() && wide.is_nan()), "{half:?}: {wide}");
            }
        }
    }

    #[test]
    fn sums_depend_neither_on_the_queries_beside_them_nor_on_pieces() {
        let numbers: Vec<f32> = (0..2 * 3 * LANES * LANES).map(|i| (i as f32 * 0.37).sin()).collect();
        let blocks: Vec<&[f32]> = numbers.chunks_exact(3 * LANES * LANES).collect();
        let weights = weights_of(&(0..21 * 32).map(|i| (i as f32 * 0.73).cos()).collect::<Vec<_>>(), 32);
        let mut together = vec![0.0; 21 * 48];
        let mut scores: Vec<Weights> = vec![[0.0; _]; 21];
        add_values_f32(&weights, &blocks, 0..32, &mut together, 48);
        scores_f32(&weights, &blocks, 32, &mut scores);
        for q in 0..21 {
            let mut alone = vec![0.0; 48];
            for positions in [0..4, 4..21, 21..32] {
                add_values_f32(&weights[q..=q], &blocks, positions, &mut alone, 48);
            }
            assert_eq!(alone, together[q * 48..][..48]);
            let mut alone: [Weights; 1] = [[0.0; _]];
            scores_f32(&weights[q..=q], &blocks, 32, &mut alone);
            assert_eq!(alone[0][..32], scores[q][..32]);
        }
    }
}
