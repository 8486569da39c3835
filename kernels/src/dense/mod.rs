//! Dense weights: the float and block-quantised types of the baselines, and of the embedding and head of a ternary model.
//!
//! A matrix stays as its file stores it. Most kernels turn a few rows at a time into f32 and multiply there, so every type gives
//! what its dequantised f32 copy would give, up to the order of summation. Those with [`Activations::Rounded`] round
//! the input as well: to int8 for quantised blocks and to bf16 for BF16, as llama.cpp does, and for F16 to two bf16. They are faster for
//! batches. Either way results depend on `k` alone, never on the batch or on the number of threads.

#[cfg(target_arch = "x86_64")]
mod amx_bf16;
#[cfg(target_arch = "x86_64")]
mod avx2_fma;
#[cfg(target_arch = "x86_64")]
mod avx2_int8;
#[cfg(target_arch = "x86_64")]
mod avx2_tile;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_fma;
#[cfg(target_arch = "x86_64")]
mod avx512_int8;
#[cfg(target_arch = "x86_64")]
mod blocked;
mod blocks;
mod int8;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod method;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;

use std::ops::Range;

use bytemuck::Pod;

use crate::bytes::{AlignedBytes, Bytes};
use crate::isa::Feature;
use crate::ops;
use crate::probe::{self, Arithmetic};
use crate::registry::{Entry, kernels};
use crate::team::Team;

pub use blocks::DenseType;

/// An `n x k` matrix as stored: rows one after the other, each of `k / block_len` blocks.
#[derive(Clone, Debug)]
pub struct DenseMatrix {
    n: usize,
    k: usize,
    ty: DenseType,
    data: Bytes,
}

impl DenseMatrix {
    /// Wraps stored rows. `None` when `k` is not a multiple of the block length or `data` is not exactly `n` rows long.
    pub fn new(n: usize, k: usize, ty: DenseType, data: Bytes) -> Option<Self> {
        (data.len() == ty.row_bytes(k)?.checked_mul(n)?).then_some(Self { n, k, ty, data })
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs per row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The storage type.
    pub fn ty(&self) -> DenseType {
        self.ty
    }

    /// All rows, as stored.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Row `row`, as stored.
    pub fn row(&self, row: usize) -> &[u8] {
        let len = self.data.len() / self.n;
        &self.data[row * len..][..len]
    }

    /// Writes row `row` as f32 into `out` (length `k`).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.ty.dequantize(self.row(row), out);
    }
}

/// What a dense kernel does with its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Multiplies it as it is: the reference for accuracy.
    #[default]
    F32,
    /// Rounds it first, where that is faster: for quantised blocks to int8 per token and block of 32, for BF16 to bf16 (see
    /// [`probe::bf16_pays`]), both as llama.cpp does, and for F16, on AMX, to 16 bits, where llama.cpp takes F16's 11. Fast for batches; what waits for
    /// memory may be slower by it.
    Rounded,
}

/// What a dense kernel is.
#[derive(Debug)]
pub struct DenseInfo {
    /// `<isa>-<type>-<method>`.
    pub name: &'static str,
    /// CPU features it needs.
    pub features: &'static [Feature],
    /// The storage type it reads.
    pub ty: DenseType,
    /// What it does with its input.
    pub activations: Activations,
}

impl DenseInfo {
    /// What it multiplies.
    pub fn arithmetic(&self) -> Arithmetic {
        match (self.activations, self.ty) {
            (Activations::F32, _) => Arithmetic::F32,
            (Activations::Rounded, DenseType::BF16) => Arithmetic::Bf16,
            (Activations::Rounded, DenseType::F16) => Arithmetic::SplitBf16,
            (Activations::Rounded, _) => Arithmetic::Int8,
        }
    }
}

/// One way to multiply by a dense matrix.
pub trait DenseKernel: Send + Sync {
    /// What this kernel is.
    fn info(&self) -> &'static DenseInfo;

    /// Brings `m` tokens of `k` values into the form that [`compute`](Self::compute) wants beside them: once for all matrices and rows that
    /// they are multiplied with. One token needs none where a kernel takes floats.
    fn prepare(&self, team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes);

    /// Writes `y[token * rows.len() + (row - rows.start)] = Σ_k w[row, k] · x[token, k]` for `m` tokens; `x` is `m x k`, and `prepared` what
    /// [`prepare`](Self::prepare) made of it.
    fn compute(&self, w: &DenseMatrix, x: &[f32], prepared: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]);

    /// Writes `y[i] = Σ_k w[rows[i], k] · x[k]` for rows that lie anywhere and one token, with the bits of [`compute`](Self::compute).
    /// Only where the kernel takes floats.
    fn compute_rows(&self, w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
        for (&row, y) in rows.iter().zip(y) {
            self.compute(w, x, &[], 1, row as usize..row as usize + 1, std::slice::from_mut(y));
        }
    }
}

/// Calls `f(tokens, room)` for every `tile` of `m` tokens (the last may have fewer), split over the team. `room` is for `len` values
/// of each token; that of the tile that begins with token `t` is `t * len` values from the start of `out`.
fn for_each_tile<T: Pod + Send>(
    team: &Team,
    out: &mut AlignedBytes,
    m: usize,
    tile: usize,
    len: usize,
    f: impl Fn(Range<usize>, &mut [T]) + Sync,
) {
    out.ensure_len(m.next_multiple_of(tile) * len * size_of::<T>());
    if len > 0 {
        ops::for_each_row(team, bytemuck::cast_slice_mut(out), tile * len, |i, room| {
            f(i * tile..m.min((i + 1) * tile), room);
        });
    }
}

kernels! {
    /// Every dense kernel built for this architecture, slowest first.
    DENSE_KERNELS: DenseInfo, DenseKernel;
    portable::Portable<{ portable::F32 }>;
    portable::Portable<{ portable::F16 }>;
    portable::Portable<{ portable::BF16 }>;
    portable::Portable<{ portable::Q8_0 }>;
    portable::Portable<{ portable::Q4_0 }>;
    portable::Portable<{ portable::Q4_1 }>;
    int8::Portable<false>;
    int8::Portable<true>;
    #[cfg(target_arch = "aarch64")]
    method::Kernel<neon::F32>;
    #[cfg(target_arch = "aarch64")]
    method::Kernel<neon::F16>;
    #[cfg(target_arch = "aarch64")]
    method::Kernel<neon::BF16>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::F32>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::F16>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::BF16>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::Q8_0>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::Q4_0>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_fma::Q4_1>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::F32>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::F16>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::BF16>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::Q8_0>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::Q4_0>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_fma::Fma512<avx2_fma::Q4_1>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_int8::Int8<false>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx2_int8::Int8<true>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_int8::Int8<false>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_int8::Int8<true>>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<avx512_bf16::Bf16>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<amx_bf16::Bf16>;
    #[cfg(target_arch = "x86_64")]
    method::Kernel<amx_bf16::F16>;
}

/// Every dense kernel built for this architecture, slowest first, with its support on this CPU.
pub fn dense_kernels() -> &'static [Entry<DenseInfo, dyn DenseKernel>] {
    DENSE_KERNELS
}

/// The fastest kernel for `ty` that runs here: the last of the list. Types for which no kernel rounds, or
/// rounding is no faster, take f32.
pub fn kernel_for(ty: DenseType, activations: Activations) -> &'static dyn DenseKernel {
    let pays = |info: &DenseInfo| info.arithmetic() != Arithmetic::Bf16 || probe::bf16_pays();
    let with = |activations| {
        let fits = move |info: &DenseInfo| info.ty == ty && info.activations == activations && pays(info);
        let fitting = DENSE_KERNELS.iter().filter(move |entry| fits(entry.info));
        fitting.filter_map(|entry| entry.kernel().ok()).next_back()
    };
    with(activations).or_else(|| with(Activations::F32)).expect("the portable kernels run everywhere")
}

/// Lanes of a running sum. Lane `i` of an output adds the products of `k = i, i + 8, i + 16, ...` in this order, whichever
/// path computes it; [`sum_lanes`] ends it. That is what makes results independent of the batch and of the threads.
const LANES: usize = 8;

/// Up to this many tokens float kernels make one pass over the rows, which waits for memory; more go by in tiles.
pub(crate) const FUSED_TOKENS: usize = 8;

/// The order in which all kernels add up the lanes.
fn sum_lanes(l: [f32; LANES]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}
