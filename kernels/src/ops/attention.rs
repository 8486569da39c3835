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

/// One row of [`tile`].
#[inline(always)]
fn add_row<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: [&[f32]; Q],
    panels: [&[[N; LANES]]; P],
    i: usize,
    sums: &mut [[[f32; LANES]; P]; Q],
) {
    let mut row = [[0f32; LANES]; P];
    for p in 0..P {
        row[p] = N::widen::<FMA, WIDE>(&panels[p][i]);
    }
    for q in 0..Q {
        for p in 0..P {
            for l in 0..LANES {
                sums[q][p][l] = madd::<FMA>(weights[q][i], row[p][l], sums[q][p][l]);
            }
        }
    }
}

/// Adds the products of `Q` queries' weights with the rows of `P` panels, which lie side by side in `out` from `column` on. A panel's sums
/// are in registers, the rows are added one after the other.
#[inline(always)]
fn tile<N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: [&[f32]; Q],
    panels: [&[[N; LANES]]; P],
    near: usize,
    column: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    // All slices have one length, so that no access of the loop is checked.
    let n_rows = panels[0].len();
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q][..n_rows]);
    let panels: [&[[N; LANES]]; P] = std::array::from_fn(|p| &panels[p][..n_rows]);
    let at = |q: usize, p: usize| q * out_stride + column + p * LANES..q * out_stride + column + (p + 1) * LANES;
    let mut sums = [[[0f32; LANES]; P]; Q];
    for q in 0..Q {
        for p in 0..P {
            sums[q][p].copy_from_slice(&out[at(q, p)]);
        }
    }
    // A cache line at a time.
    let per_line = (LINE / size_of::<[N; LANES]>()).max(1);
    let mut i = 0;
    while i + per_line <= n_rows {
        for p in 0..P {
            fetch_behind::<N, Q>(panels[p][i].as_ptr(), near);
        }
        for j in i..i + per_line {
            add_row::<N, Q, P, FMA, WIDE>(weights, panels, j, &mut sums);
        }
        i += per_line;
    }
    while i < n_rows {
        add_row::<N, Q, P, FMA, WIDE>(weights, panels, i, &mut sums);
        i += 1;
    }
    for q in 0..Q {
        for p in 0..P {
            out[at(q, p)].copy_from_slice(&sums[q][p]);
        }
    }
}

/// [`tile`] for any number of panels, `P` at a time.
#[inline(always)]
fn tiles<'a, N: Number, const Q: usize, const P: usize, const FMA: bool, const WIDE: bool>(
    weights: &[Weights],
    from: usize,
    panels: impl Iterator<Item = &'a [[N; LANES]]>,
    near: usize,
    out: &mut [f32],
    out_stride: usize,
) {
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q][from..]);
    let near = (P * near).max(NEAR);
    let mut waiting: [&[[N; LANES]]; P] = [&[]; P];
    let (mut n, mut column) = (0, 0);
    for panel in panels {
        waiting[n] = panel;
        n += 1;
        if n == P {
            tile::<N, Q, P, FMA, WIDE>(weights, waiting, near, column, out, out_stride);
            (n, column) = (0, column + P * LANES);
        }
    }
    for (i, panel) in waiting[..n].iter().enumerate() {
        tile::<N, Q, 1, FMA, WIDE>(weights, [panel], near, column + i * LANES, out, out_stride);
    }
}

/// Some rows of all panels.
fn panels<'a, N>(blocks: &'a [&'a [N]], height: usize, rows: &Range<usize>) -> impl Iterator<Item = &'a [[N; LANES]]> {
    let panels = blocks.iter().flat_map(move |block| block.as_chunks::<LANES>().0.chunks_exact(height));
    panels.map(move |panel| &panel[rows.clone()])
}

/// Runs `$tiles!(first, queries, panels)` for `$n` queries, some at a time: as many sums as there are registers for, and enough of them
/// that none waits for the row before.
macro_rules! some_at_a_time {
    ($n:expr, $tiles:ident) => {{
        let n = $n;
        let mut first = 0;
        while first < n {
            first += match (WIDE, n - first) {
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

/// [`add_products_f32`] for any number of queries.
#[inline(always)]
fn products<N: Number, const FMA: bool, const WIDE: bool>(
    weights: &[Weights],
    from: usize,
    blocks: &[&[N]],
    height: usize,
    rows: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    let near = height * size_of::<[N; LANES]>();
    macro_rules! tiles {
        ($first:expr, $q:literal, $p:literal) => {
            tiles::<N, $q, $p, FMA, WIDE>(
                &weights[$first..],
                from,
                panels(blocks, height, &rows),
                near,
                &mut out[$first * out_stride..],
                out_stride,
            )
        };
    }
    some_at_a_time!(out.len().div_ceil(out_stride), tiles);
}

per_isa! {
    /// `out[q] += Σ_i weights[q][from + i] · row[i]`, one row after the other, so that a sum in pieces has the bits of the whole and none
    /// depends on the other queries.
    ///
    /// A row is kept in panels of 16 numbers: `blocks` side by side, each `[width / 16][height][16]`, of which `rows` are summed. Query `q` has
    /// the rows' weights at `weights[q][from..]` and its `width` sums from `q · out_stride` on; there are as many queries as `out`
    /// has room for.
    ///
    /// With keys, a panel a block (`[head_dim][16 positions]`), and queries as weights these are scores; with values
    /// (`[head_dim / 16][positions][16]`) and softmax weights, the attention's output.
    pub fn add_products_f32(
        weights: &[Weights], from: usize, blocks: &[&[f32]], height: usize, rows: Range<usize>, out: &mut [f32],
        out_stride: usize,
    ) {
        products::<f32, FMA, WIDE>(weights, from, blocks, height, rows, out, out_stride);
    }

    /// [`add_products_f32`] with rows in half precision, which are widened in registers.
    pub fn add_products_f16(
        weights: &[Weights], from: usize, blocks: &[&[f16]], height: usize, rows: Range<usize>, out: &mut [f32],
        out_stride: usize,
    ) {
        products::<f16, FMA, WIDE>(weights, from, blocks, height, rows, out, out_stride);
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
        let max = max_of(scores, f32::NEG_INFINITY, |score| score);
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

    /// `n` queries with `height` weights each, behind three others.
    fn weights_of(n: usize, weights: Vec<f32>, height: usize) -> Vec<Weights> {
        let mut all = vec![[f32::NAN; _]; n];
        all.iter_mut()
            .zip(weights.chunks_exact(height))
            .for_each(|(all, weights)| all[3..][..height].copy_from_slice(weights));
        all
    }

    #[test]
    fn products_of_any_shape_are_right_in_both_types() {
        // Panels, their height, the rows, queries.
        let cases = [
            (1, 128, 0..128, 4),
            (8, 16, 0..16, 4),
            (8, 16, 3..9, 1),
            (3, 7, 1..7, 3),
            (2, 5, 0..5, 7),
            (8, 16, 0..16, 16),
            (1, 9, 2..9, 11),
            (2, 9, 0..9, 37),
            (4, 16, 5..5, 2),
            (9, 128, 0..128, 1),
            (5, 16, 1..16, 3),
            (7, 16, 0..15, 20),
        ];
        for (n_panels, height, range, n_queries) in cases {
            let out_stride = n_panels * LANES + 2;
            let panels = numbers(n_panels * height * LANES, 11);
            let weights = weights_of(n_queries, numbers(n_queries * height, 13), height);
            let start = numbers(n_queries * out_stride - 2, 17);
            let mut expected = start.clone();
            for q in 0..n_queries {
                for (p, panel) in panels.chunks_exact(height * LANES).enumerate() {
                    for (i, row) in panel.chunks_exact(LANES).enumerate().filter(|(i, _)| range.contains(i)) {
                        for (lane, x) in row.iter().enumerate() {
                            expected[q * out_stride + p * LANES + lane] += weights[q][3 + i - range.start] * x;
                        }
                    }
                }
            }
            let halves: Vec<f16> = panels.iter().copied().map(f16::from_f32).collect();
            // In one block, and in blocks of a panel each.
            for panels_together in [n_panels, 1] {
                let len = panels_together * height * LANES;
                let mut out = start.clone();
                let blocks: Vec<&[f32]> = panels.chunks(len).collect();
                add_products_f32(&weights, 3, &blocks, height, range.clone(), &mut out, out_stride);
                assert_eq!(out, expected, "{n_panels} panels of {height}, {n_queries} queries");
                let mut out = start.clone();
                let blocks: Vec<&[f16]> = halves.chunks(len).collect();
                add_products_f16(&weights, 3, &blocks, height, range.clone(), &mut out, out_stride);
                assert_eq!(out, expected, "{n_panels} panels of {height}, {n_queries} queries, f16");
            }
        }
    }

    #[test]
    fn halves_of_every_kind_widen_as_the_library_has_it() {
        // One query whose weight is 1: the sum is the number.
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut wide = vec![0.0; halves.len()];
        add_products_f16(&[[1.0; _]], 0, &[&halves], 1, 0..1, &mut wide, halves.len());
        for (half, wide) in halves.iter().zip(&wide) {
            assert!(half.to_f32() == *wide || (half.is_nan() && wide.is_nan()), "{half:?}: {wide}");
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_queries_beside_them() {
        let panels: Vec<f32> = (0..3 * 9 * LANES).map(|i| (i as f32 * 0.37).sin()).collect();
        let weights = weights_of(21, (0..21 * 9).map(|i| (i as f32 * 0.73).cos()).collect(), 9);
        let mut together = vec![0.0; 21 * 48];
        add_products_f32(&weights, 3, &[&panels], 9, 0..9, &mut together, 48);
        for q in 0..21 {
            let mut alone = vec![0.0; 48];
            add_products_f32(&weights[q..], 3, &[&panels], 9, 0..4, &mut alone, 48);
            add_products_f32(&weights[q..], 7, &[&panels], 9, 4..9, &mut alone, 48);
            assert_eq!(alone, together[q * 48..][..48]);
        }
    }
}
