//! Memory that nobody may touch lies right behind the weights and the sums of every kernel, and behind the blocks of a KV cache. Sanitizers do
//! not see what asm reads.
#![cfg(target_os = "linux")]

mod support;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;
use ternbench_kernels::dense::{Activations, DENSE_KERNELS, kernel_for};
use ternbench_kernels::ops::{self, Blocks, IntWeights, LANES, Scores};
use ternbench_kernels::screen::SearchBuffers;
use ternbench_kernels::verify::{Random, activations, legal, matrix};
use ternbench_kernels::{AlignedBytes, Bytes, DenseMatrix, PackedMatrix, Pool, Prepared, Screen, Team, oracle};

/// Larger than any page that a CPU here has.
const PAGE: usize = 64 * 1024;

/// Bytes that end, up to 63 more, before a page whose use ends the process. They begin with a cache line.
struct Guarded {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl Guarded {
    fn zeroed(len: usize) -> Self {
        let end = len.next_multiple_of(PAGE);
        let mut map = MmapMut::map_anon(end + PAGE).expect("memory");
        // SAFETY: the page is this map's, which hands out no reference to it.
        let result = unsafe { libc::mprotect(map[end..].as_mut_ptr().cast(), PAGE, libc::PROT_NONE) };
        assert_eq!(result, 0, "a page without rights");
        Self { map, start: end - len.next_multiple_of(64), len }
    }
}

impl Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.start..][..self.len]
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..self.len]
    }
}

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A copy of `bytes` with nothing behind.
fn guarded(bytes: &[u8]) -> Bytes {
    let mut copy = Guarded::zeroed(bytes.len());
    copy.copy_from_slice(bytes);
    Bytes::new(Arc::new(copy), 0..bytes.len()).expect("all of it")
}

#[test]
fn ternary_kernels_stay_within_weights_and_sums() {
    let mut random = Random::new(31);
    for kernel in support::ternary_kernels() {
        for (n, k, m) in [(33, 1, 3), (65, 33, 48), (32, 96, 1), (33, 257, 17), (97, 320, 2), (64, 200, 33)] {
            let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
            let x = activations(m, k, |_, _| legal(random.below(255)));
            let packed = PackedMatrix { data: guarded(&kernel.pack(&w).data), ..kernel.pack(&w) };
            let mut prepared = Prepared::default();
            kernel.prepare(&Team::alone(), &x, &mut prepared);
            let rows = n.next_multiple_of(kernel.info().row_tile);
            let mut sums = Guarded::zeroed(4 * m * rows);
            kernel.compute(&packed, &prepared, 0..rows, bytemuck::cast_slice_mut(&mut sums));
            let sums: &[i32] = bytemuck::cast_slice(&sums);
            let allowed = kernel.info().exactness.allowed(k);
            for (token, expected) in oracle::gemm(&w, &x).chunks_exact(n).enumerate() {
                let right = sums[token * rows..].iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= allowed);
                assert!(right, "{}: {n} x {k}, token {token} of {m}", kernel.info().name);
            }
        }
    }
}

#[test]
fn dense_kernels_stay_within_weights_and_sums() {
    let mut random = Random::new(32);
    for kernel in support::runnable(DENSE_KERNELS, |entry| entry.info.name) {
        let ty = kernel.info().ty;
        for (n, k, m) in [(1, 32, 1), (33, 64, 48), (64, 1056, 33), (37, 96, 17)] {
            let bytes: Vec<u8> =
                (0..n * k / ty.block_len() * ty.block_bytes()).map(|_| random.below(60) as u8).collect();
            let w = DenseMatrix::new(n, k, ty, guarded(&bytes)).expect("whole rows");
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let mut prepared = AlignedBytes::zeroed(0);
            Pool::new(1).expect("a thread").run(|team| kernel.prepare(team, &x, m, k, &mut prepared));
            let mut y = Guarded::zeroed(4 * m * n);
            y.fill(u8::MAX);
            kernel.compute(&w, &x, &prepared, m, 0..n, bytemuck::cast_slice_mut(&mut y));
            let y: &[f32] = bytemuck::cast_slice(&y);
            assert!(y.iter().all(|y| y.is_finite()), "{}: {n} x {k}, {m} tokens", kernel.info().name);
        }
    }
}

#[test]
fn the_screen_stays_within_its_copy() {
    let mut random = Random::new(33);
    let ty = ternbench_kernels::DenseType::F32;
    // An odd number of groups of 8 rows, and of blocks of 32 columns; the last tiles; one of each.
    for (n, k) in [(8, 32), (200, 96), (391, 160), (1037, 64)] {
        let weights: Vec<u8> = (0..n * k).flat_map(|_| random.float().to_le_bytes()).collect();
        let head = DenseMatrix::new(n, k, ty, guarded(&weights)).expect("whole rows");
        let kernel = kernel_for(ty, Activations::F32);
        let made = Screen::new(kernel, &head).expect("legal weights");
        let screen = Screen::from_packed(kernel, &head, guarded(made.packed())).expect("as many bytes");
        for m in [1, 2, 4, 20, 33] {
            let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
            let best = |screen: &Screen| {
                let (mut buffers, mut best) = (SearchBuffers::default(), vec![Vec::new(); m]);
                let found = Pool::new(1)
                    .expect("a thread")
                    .run(|team| screen.search(team, &mut buffers, &x, 1.0, 1, &mut best));
                (found, best)
            };
            assert_eq!(best(&screen), best(&made), "{n} x {k}, {m} inputs");
        }
    }
}

#[test]
fn attention_in_int8_stays_within_blocks_and_answers() {
    let mut random = Random::new(34);
    for (n_blocks, head_dim, n_queries) in [(1, 16, 1), (3, 64, 4), (16, 128, 16), (5, 96, 33), (2, 48, 17)] {
        let mut blocks = || -> Vec<Guarded> {
            let mut block = || {
                let mut block = Guarded::zeroed(LANES * (head_dim + size_of::<f32>()));
                let (numbers, units) = block.split_at_mut(LANES * head_dim);
                numbers.fill_with(|| legal(random.below(255)) as u8);
                bytemuck::cast_slice_mut(units).fill(0.5f32);
                block
            };
            (0..n_blocks).map(|_| block()).collect()
        };
        let (keys, values) = (blocks(), blocks());
        let [keys, values] = [&keys, &values].map(|blocks| blocks.iter().map(|block| &block[..]).collect::<Vec<_>>());
        let mut queries = vec![IntWeights::default(); n_queries];
        for query in &mut queries {
            query.set_query(&(0..head_dim).map(|_| random.float()).collect::<Vec<_>>());
        }
        let mut scores = Guarded::zeroed(n_queries * size_of::<Scores>());
        let scores: &mut [Scores] = bytemuck::cast_slice_mut::<_, f32>(&mut scores).as_chunks_mut().0;
        ops::scores_i8(&queries, Blocks { all: &keys, next: &values }, head_dim / 2, scores);
        let mut weights = vec![IntWeights::default(); n_queries];
        for (scores, weights) in scores.iter().zip(&mut weights) {
            ops::quantize_weights(&scores[..n_blocks * LANES], &values, weights);
        }
        let stride = head_dim + 2;
        let mut answers = Guarded::zeroed(4 * n_queries * stride);
        let answers: &mut [f32] = bytemuck::cast_slice_mut(&mut answers);
        ops::values_i8(&weights, Blocks { all: &values, next: &[] }, head_dim / LANES, answers, stride);
        let held = scores.iter().flat_map(|scores| &scores[..n_blocks * LANES]).chain(&*answers);
        assert!(held.copied().all(f32::is_finite), "{n_blocks} blocks of {head_dim}, {n_queries} queries");
        assert!(answers.iter().any(|x| *x != 0.0));
    }
}
