//! The bound is put to the test by rows that sit on it, and the search by comparison with the whole head.

use half::f16;

use super::*;
use crate::bytes::AlignedBytes;
use crate::dense::{Activations, DenseType, kernel_for};
use crate::team::Pool;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Normal enough: twelve uniform numbers.
    fn gauss(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }

    fn vector(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gauss()).collect()
    }
}

fn matrix(ty: DenseType, rows: &[Vec<f32>]) -> DenseMatrix {
    let k = rows[0].len();
    let mut bytes = Vec::new();
    for w in rows.iter().flatten() {
        match ty {
            DenseType::F32 => bytes.extend(w.to_le_bytes()),
            DenseType::F16 => bytes.extend(f16::from_f32(*w).to_le_bytes()),
            DenseType::BF16 => bytes.extend(half::bf16::from_f32(*w).to_le_bytes()),
            _ => panic!("not a float"),
        }
    }
    let mut data = AlignedBytes::zeroed(bytes.len());
    data.copy_from_slice(&bytes);
    DenseMatrix::new(rows.len(), k, ty, data.into()).unwrap()
}

fn all_logits(head: &DenseMatrix, x: &[f32]) -> Vec<f32> {
    let mut logits = vec![0.0; head.n()];
    kernel_for(head.ty(), Activations::F32).compute(head, x, &[], 1, 0..head.n(), &mut logits);
    logits
}

/// The rows that a search must give: sorted by logit, then by index.
fn best_of(logits: &[f32], scale: f32, k: usize) -> Vec<(u32, f32)> {
    let mut rows: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| logit * scale)).collect();
    rows.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    rows.truncate(k);
    rows
}

/// The screen of a head that is multiplied in f32.
fn screen(head: &DenseMatrix) -> Option<Screen> {
    Screen::new(kernel_for(head.ty(), Activations::F32), head)
}

/// The scores and bounds of every path that this CPU has, the portable one first, and those for many inputs, the portable one first. With
/// other queries beside it, a query gets the same.
fn scores(screen: &Screen, x: &[f32]) -> [Vec<(Vec<f32>, Vec<f32>)>; 2] {
    let run = |path: Score, inputs: &[f32], whole: bool| {
        let m = inputs.len() / x.len();
        let mut queries = Queries::default();
        assert!(queries.quantize(inputs, m, x.len(), whole));
        let n = m * screen.head.n();
        let (mut scores, mut bounds) = (vec![f32::NAN; n], vec![f32::NAN; n]);
        let mut all = |Candidate { query, row, bound }: Candidate, score: f32| {
            let at = query as usize * screen.head.n() + row as usize;
            (scores[at], bounds[at]) = (score, bound);
            f32::NEG_INFINITY
        };
        let mut least = vec![f32::NEG_INFINITY; m];
        path(&screen.rows, &queries, 0..screen.rows.n_groups(), &mut least, &mut all);
        (scores, bounds)
    };
    let of_path = |path: Score, whole: bool, counts: &[usize]| {
        let inputs = others(x, counts.iter().copied().max().unwrap_or(1));
        let mut alone: Vec<_> = inputs.chunks_exact(x.len()).map(|input| run(path, input, whole)).collect();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for &m in counts {
            let together = run(path, &inputs[..m * x.len()], whole);
            let n = screen.head.n();
            for (i, alone) in alone[..m].iter().enumerate() {
                assert_eq!(bits(&together.0[i * n..][..n]), bits(&alone.0), "{i} of {m}: scores");
                assert_eq!(bits(&together.1[i * n..][..n]), bits(&alone.1), "{i} of {m}: bounds");
            }
        }
        // The first is `x` itself.
        alone.swap_remove(0)
    };
    let of_many = std::iter::once(portable::score_whole as Score).chain(by_tiles());
    [
        paths().map(|path| of_path(path, false, &[2, 3, 4, 5, 6, 7, 8, 9, 10])).collect(),
        of_many.map(|path| of_path(path, true, &[4, 15, 16, 17, 20, 32, 33])).collect(),
    ]
}

/// `n` inputs that are made of `x`, itself the first: turned around, negated, in steps.
fn others(x: &[f32], n: usize) -> Vec<f32> {
    let input = |i: usize| {
        let mut x = x.to_vec();
        let turn = i * 5 % x.len();
        x.rotate_left(turn);
        x.iter_mut().for_each(|x| *x *= if i.is_multiple_of(2) { 1.0 } else { -0.75 });
        x
    };
    (0..n).flat_map(input).collect()
}

/// Checks bounds and searches of one head and input; returns the rows rescored for the best one, and for the best of 33 inputs, if they
/// were found.
fn check_all(head: &DenseMatrix, x: &[f32], what: &str) -> [Option<usize>; 2] {
    let screen = screen(head).unwrap();
    let inputs = others(x, 33);
    // The first is `x` itself.
    let logits: Vec<Vec<f32>> = inputs.chunks_exact(x.len()).map(|x| all_logits(head, x)).collect();
    let scores = scores(&screen, x);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for vector in scores[0][1..].windows(2).chain(scores[1].windows(2)) {
        assert_eq!(bits(&vector[0].0), bits(&vector[1].0), "{what}: scores of two paths");
        assert_eq!(bits(&vector[0].1), bits(&vector[1].1), "{what}: bounds of two paths");
    }
    for (scores, bounds) in scores.into_iter().flatten() {
        for row in 0..head.n() {
            let (logit, bound) = (logits[0][row], bounds[row]);
            assert!(bound.is_finite() && bound >= logit, "{what}: row {row}: {logit} above its bound {bound}");
            // The same from below: the bound is on the distance.
            assert!(2.0 * scores[row] - bound <= logit, "{what}: row {row}: {logit}, {}, {bound}", scores[row]);
        }
    }
    let mut rescored = [None; 2];
    for n_threads in [1, 3] {
        let pool = Pool::new(n_threads).unwrap();
        for (k, scale) in [(1, 1.0), (1, 0.1), (5, 1.0), (40, 0.3)] {
            for m in [1, 3, 12, 33] {
                let (mut buffers, mut best) = (SearchBuffers::default(), vec![vec![(9, 9.0)]; m]);
                let inputs = &inputs[..m * x.len()];
                let found = pool.run(|team| screen.search(team, &mut buffers, inputs, scale, k, &mut best));
                for (i, (best, logits)) in best.iter().zip(&logits).enumerate() {
                    let expected = if found.is_some() { best_of(logits, scale, k) } else { Vec::new() };
                    let bits = |rows: &[(u32, f32)]| {
                        rows.iter().map(|&(row, logit)| (row, logit.to_bits())).collect::<Vec<_>>()
                    };
                    let what = format!("{what}: {i} of {m}, k {k}, scale {scale}, {n_threads} threads");
                    assert_eq!(bits(best), bits(&expected), "{what}");
                }
                if k == 1 && (m == 1 || m == 33) {
                    rescored[usize::from(m == 33)] = found.map(|found| found.rows);
                }
            }
        }
    }
    rescored
}

/// [`check_all`], for the one.
fn check(head: &DenseMatrix, x: &[f32], what: &str) -> Option<usize> {
    check_all(head, x, what)[0]
}

fn gaussian_rows_of_every_shape(ty: DenseType) {
    let mut rng = Rng(1);
    // The last is wider than what AVX2 unpacks at once, twice.
    for (n, k) in [(1, 1), (7, 31), (8, 32), (9, 33), (129, 100), (700, 96), (1037, 257), (71, 2085)] {
        let rows: Vec<_> = (0..n).map(|_| rng.vector(k)).collect();
        let x = rng.vector(k);
        check(&matrix(ty, &rows), &x, &format!("{ty:?} {n} x {k}"));
    }
}

#[test]
fn gaussian_rows_in_f32() {
    gaussian_rows_of_every_shape(DenseType::F32);
}

#[test]
fn gaussian_rows_in_f16() {
    gaussian_rows_of_every_shape(DenseType::F16);
}

#[test]
fn gaussian_rows_in_bf16() {
    gaussian_rows_of_every_shape(DenseType::BF16);
}

/// A search that always gave up would fail here.
#[test]
fn wide_rows_have_few_candidates() {
    let mut rng = Rng(7);
    let rows: Vec<_> = (0..2000).map(|_| rng.vector(640)).collect();
    let [one, many] = check_all(&matrix(DenseType::F16, &rows), &rng.vector(640), "wide");
    let (one, many) = (one.expect("worth it"), many.expect("worth it"));
    assert!(one < 600 && many < 33 * 600, "{one} and {many} rows");
}

#[test]
fn a_common_direction_and_outlier_columns() {
    let mut rng = Rng(2);
    let (n, k) = (1500, 320);
    let mut common = rng.vector(k);
    common.iter_mut().for_each(|c| *c *= 5.0);
    common[7] = 300.0;
    let row = |rng: &mut Rng| rng.vector(k).iter().zip(&common).map(|(w, c)| w + c).collect::<Vec<_>>();
    let rows: Vec<_> = (0..n).map(|_| row(&mut rng)).collect();
    for sign in [1.0, -1.0] {
        let x: Vec<f32> = rng.vector(k).iter().zip(&common).map(|(w, c)| w + sign * c).collect();
        check(&matrix(DenseType::F16, &rows), &x, "common direction");
    }
}

/// Rows whose residual is parallel to the input, as long as rounding allows: `w = step · (code ± 0.49)` with the input's signs.
/// Such a row beats rows with better scores, and Cauchy-Schwarz is an equality for it.
#[test]
fn rows_that_sit_on_the_bound() {
    let mut rng = Rng(3);
    for k in [32, 96, 256, 1000] {
        let x: Vec<f32> = (0..k).map(|_| if rng.next().is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for i in 0..400usize {
            let hidden = if i.is_multiple_of(3) { 0.49f32 } else { 0.0 };
            let mut row: Vec<f32> = (0..k)
                .map(|j: usize| {
                    let code = (rng.next() % 29) as f32 - 14.0;
                    code + if code == 0.0 || j.is_multiple_of(32) { 0.0 } else { hidden * x[j] }
                })
                .collect();
            // The largest of each block, which sets the step to 1.
            row.iter_mut().step_by(32).for_each(|w| *w = 15.5);
            // Scores a little above those of the rows with hidden gains, which are 0.49 of about 31 / 32 of k.
            let wanted = 0.3 * k as f32 + if hidden == 0.0 { 0.2 * k as f32 + (i % 7) as f32 } else { (i % 5) as f32 };
            let mut score: f32 = row.iter().zip(&x).map(|(w, x)| w.round() * x).sum();
            for _ in 0..200_000 {
                let j = rng.next() as usize % k;
                let next = row[j] + x[j] * (wanted - score).signum();
                if (wanted - score).abs() < 1.0 {
                    break;
                }
                if !j.is_multiple_of(32) && next.abs() < 15.0 && (row[j] == 0.0) == (next == 0.0) {
                    score += (next.round() - row[j].round()) * x[j];
                    row[j] = next;
                }
            }
            rows.push(row);
        }
        let head = matrix(DenseType::F32, &rows);
        check(&head, &x, &format!("on the bound, k {k}"));
        let screen = screen(&head).unwrap();
        let logits = all_logits(&head, &x);
        for (of, least_used) in scores(&screen, &x).into_iter().zip([0.9, 0.8]) {
            let (scores, bounds) = &of[0];
            let by_score = argmax(scores);
            let by_logit = argmax(&logits);
            assert!(by_score != by_logit, "k {k}: the scores must mislead, or the test shows nothing");
            let used = (logits[by_logit] - scores[by_logit]) / (bounds[by_logit] - scores[by_logit]);
            assert!(used > least_used, "k {k}: the row uses {used} of its bound");
        }
    }
}

/// Rows whose codes are exact and whose bytes are not: halves that all go up, towards an input that is negative there. Then bytes use all of
/// their own residual, and many times that of the codes.
#[test]
fn bytes_have_a_residual_of_their_own() {
    let mut rng = Rng(6);
    let k = 320;
    // Block 0 sets the row's scale to 1, the others' largest weight theirs to 16: odd codes are half a unit of bytes off.
    let mut row = || -> Vec<f32> {
        let odd = |rng: &mut Rng| 16.0 * (2.0 * (rng.next() % 14) as f32 - 13.0);
        let mut row: Vec<f32> = (0..k).map(|j| if j < 32 { 0.0 } else { odd(&mut rng) }).collect();
        row[0] = 15.5 * 255.0;
        row[32..].iter_mut().step_by(32).for_each(|w| *w = 248.0);
        row
    };
    let rows: Vec<_> = (0..40).map(|_| row()).collect();
    let x: Vec<f32> = (0..k).map(|j: usize| if j < 32 || j.is_multiple_of(32) { 0.0 } else { -1.0 }).collect();
    let head = matrix(DenseType::F32, &rows);
    check(&head, &x, "halves");
    let [_, whole] = scores(&screen(&head).unwrap(), &x);
    for (row, (&logit, (score, bound))) in
        all_logits(&head, &x).iter().zip(whole[0].0.iter().zip(&whole[0].1)).enumerate()
    {
        let used = (logit - score) / (bound - score);
        assert!(used > 0.7 && bound - score > 1000.0, "row {row}: {used} of {}", bound - score);
    }
}

/// Sums as large as they can be, and one column more, which is left to the path by blocks.
#[test]
fn the_most_columns() {
    let most = Queries::MOST_COLUMNS;
    for k in [most, most + 1] {
        let mut rows = vec![vec![-1.0; k]; 30];
        rows[13].fill(1.0);
        let head = matrix(DenseType::F32, &rows);
        let (x, mut best) = (vec![1.0; 17 * k], vec![Vec::new(); 17]);
        let (screen, pool) = (screen(&head).unwrap(), Pool::new(1).unwrap());
        let found = pool.run(|team| screen.search(team, &mut SearchBuffers::default(), &x, 1.0, 1, &mut best));
        assert!(found.is_some_and(|found| found.rows < 17 * 5), "{k} columns: {found:?}");
        assert_eq!(best, vec![best_of(&all_logits(&head, &x[..k]), 1.0, 1); 17], "{k} columns");
    }
    // Bytes of -127 and 120, times 127.
    let head = matrix(DenseType::F32, &[vec![-1.0; most], vec![1.0; most]]);
    for (score, bound) in scores(&screen(&head).unwrap(), &vec![1.0; most]).into_iter().flatten() {
        assert!(score[0] < -120_000.0 && score[1] > 120_000.0, "{score:?}");
        assert!(bound[0] >= -(most as f32) && bound[1] >= most as f32, "{bound:?}");
    }
}

fn argmax(values: &[f32]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

#[test]
fn ties_go_to_the_smaller_index() {
    let mut rng = Rng(4);
    let k = 200;
    let x = rng.vector(k);
    let mut rows: Vec<_> = (0..3000).map(|_| rng.vector(k).iter().map(|w| 0.3 * w).collect::<Vec<_>>()).collect();
    let winner: Vec<f32> = x.iter().map(|x| 0.5 * x).collect();
    for row in [2999, 1234, 77, 1235] {
        rows[row] = winner.clone();
    }
    assert!(check(&matrix(DenseType::F16, &rows), &x, "ties").expect("a clear winner") < 1000);
    // Nothing but ties: no screen helps.
    assert_eq!(check(&matrix(DenseType::F16, &vec![winner; 50]), &x, "all equal"), None);
    assert_eq!(check(&matrix(DenseType::F16, &vec![vec![0.0; k]; 50]), &x, "all zero"), None);
}

#[test]
fn huge_range_zero_rows_and_tiny_numbers() {
    let mut rng = Rng(5);
    let k = 70;
    let mut rows: Vec<_> = (0..500).map(|_| rng.vector(k)).collect();
    for (i, row) in rows.iter_mut().enumerate() {
        let scale = 10f32.powi(i as i32 % 50 - 39);
        row.iter_mut().enumerate().for_each(|(j, w)| *w *= if j < 32 { scale } else { 1e-6 * scale });
        if i.is_multiple_of(11) {
            row.fill(0.0);
        }
    }
    let head = matrix(DenseType::F32, &rows);
    for scale in [1.0, 1e-30, 1e8] {
        let mut x: Vec<f32> = rng.vector(k).iter().map(|x| x * scale).collect();
        check(&head, &x, "range");
        x[..32].fill(0.0);
        check(&head, &x, "range, a block of zeros");
    }
    check(&head, &vec![0.0; k], "a zero input");
}

#[test]
fn what_cannot_be_bounded_is_left_to_the_head() {
    for bad in [f32::NAN, f32::INFINITY, 1e13] {
        let mut rows = vec![vec![1.0; 40]; 20];
        rows[13][33] = bad;
        assert!(screen(&matrix(DenseType::F32, &rows)).is_none(), "{bad}");
    }
    let screen = screen(&matrix(DenseType::F32, &vec![vec![1.0; 40]; 20])).unwrap();
    let pool = Pool::new(1).unwrap();
    for (bad, scale) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (1e30, 1.0), (1.0, -1.0), (1.0, f32::NAN), (1.0, 1e-30)]
    {
        for m in [2, 20] {
            let mut best = vec![vec![(9, 9.0)]; m];
            let mut inputs = vec![1.0; m * 40];
            inputs[(m - 1) * 40..].fill(bad);
            let found =
                pool.run(|team| screen.search(team, &mut SearchBuffers::default(), &inputs, scale, 1, &mut best));
            assert_eq!((found, best), (None, vec![Vec::new(); m]), "{bad}, {scale}");
        }
    }
}

/// Prints how long a search takes on 2B4T's head: `cargo test --release -p ternbench-kernels -- --ignored --nocapture time_of`.
#[test]
#[ignore = "prints times, checks nothing"]
fn time_of_a_search() {
    use rayon::prelude::*;
    // Rows as the first argument behind `--`: few of them show what the arithmetic costs without the memory.
    let n = std::env::var("ROWS").map_or(128_256, |rows| rows.parse().unwrap());
    let k = 2560;
    let mut data = AlignedBytes::zeroed(n * k * 2);
    data.par_chunks_exact_mut(k * 2).enumerate().for_each(|(row, bytes)| {
        let mut rng = Rng(row as u64 * 7919);
        for w in bytes.chunks_exact_mut(2) {
            w.copy_from_slice(&f16::from_f32(rng.gauss()).to_le_bytes());
        }
    });
    let head = DenseMatrix::new(n, k, DenseType::F16, data.into()).unwrap();
    let start = std::time::Instant::now();
    let screen = screen(&head).unwrap();
    println!("quantised in {:?}: {} bytes", start.elapsed(), screen.bytes());
    let linear = crate::Linear::dense(head.clone(), Activations::F32);
    for n_threads in [1, 2] {
        let pool = Pool::new(n_threads).unwrap();
        let (mut buffers, mut best, mut logits) = (SearchBuffers::default(), vec![Vec::new()], vec![0.0; n]);
        for i in 0..6 {
            let x = Rng(i).vector(k);
            let start = std::time::Instant::now();
            let found = pool.run(|team| screen.search(team, &mut buffers, &x, 1.0, 1, &mut best));
            let screened = start.elapsed();
            let start = std::time::Instant::now();
            pool.run(|team| {
                crate::driver::multiply(
                    team,
                    &mut crate::driver::Scratch::default(),
                    crate::driver::Input::Rows(&x),
                    1,
                    &mut [crate::driver::Output::store(&linear, &mut logits)],
                )
            });
            println!("{n_threads} threads: {found:?} {screened:?}, whole {:?}", start.elapsed());
        }
        for m in [4, 8, 16, 32] {
            // Rows of the head, so that there are clear winners.
            let mut x = vec![0.0; m * k];
            x.chunks_exact_mut(k).enumerate().for_each(|(i, x)| head.dequantize_row(i * n / m, x));
            let (mut best, mut logits) = (vec![Vec::new(); m], vec![0.0; m * n]);
            for _ in 0..3 {
                let start = std::time::Instant::now();
                let found = pool.run(|team| screen.search(team, &mut buffers, &x, 1.0, 1, &mut best));
                let screened = start.elapsed();
                let start = std::time::Instant::now();
                let scratch = &mut crate::driver::Scratch::default();
                pool.run(|team| {
                    crate::driver::multiply(
                        team,
                        scratch,
                        crate::driver::Input::Rows(&x),
                        m,
                        &mut [crate::driver::Output::store(&linear, &mut logits)],
                    )
                });
                println!("{n_threads} threads, {m} inputs: {found:?} {screened:?}, whole {:?}", start.elapsed());
            }
        }
    }
}
