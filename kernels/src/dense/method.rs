//! What the SIMD kernels share: all are a [`Kernel`], which holds the proof that the CPU can run its [`Method`].

use std::marker::PhantomData;
use std::ops::Range;

use super::{Activations, DenseInfo, DenseKernel, DenseMatrix, DenseType};
use crate::bytes::AlignedBytes;
use crate::isa::Token;
use crate::team::Team;

/// A way to multiply by the matrices of one type.
pub trait Method: Send + Sync + 'static {
    /// Proof that the CPU has what it needs.
    type Proof: Token;
    const INFO: DenseInfo;

    /// [`DenseKernel::prepare`].
    ///
    /// # Safety
    /// The CPU has what [`Self::Proof`] proves.
    unsafe fn prepare(team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes);

    /// [`DenseKernel::compute`], after its checks, for at least one row.
    ///
    /// # Safety
    /// The CPU has what [`Self::Proof`] proves.
    unsafe fn multiply(w: &DenseMatrix, x: &[f32], prepared: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]);

    /// [`DenseKernel::compute_rows`], after its checks.
    ///
    /// # Safety
    /// The CPU has what [`Self::Proof`] proves.
    unsafe fn multiply_rows(w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
        for (&row, y) in rows.iter().zip(y) {
            // SAFETY: by this function's contract.
            unsafe { Self::multiply(w, x, &[], 1, row as usize..row as usize + 1, std::slice::from_mut(y)) };
        }
    }
}

/// What a method is.
pub const fn info<P: Token>(name: &'static str, ty: DenseType, activations: Activations) -> DenseInfo {
    DenseInfo { name, features: P::FEATURES, ty, activations }
}

/// The kernel of a method.
pub struct Kernel<M: Method>(#[allow(dead_code, reason = "the proof of support")] M::Proof, PhantomData<M>);

impl<M: Method> Kernel<M> {
    pub const INFO: &'static DenseInfo = &M::INFO;

    pub fn new() -> Option<Self> {
        M::Proof::detect().map(|proof| Self(proof, PhantomData))
    }
}

impl<M: Method> DenseKernel for Kernel<M> {
    fn info(&self) -> &'static DenseInfo {
        Self::INFO
    }

    fn prepare(&self, team: &Team, x: &[f32], m: usize, k: usize, out: &mut AlignedBytes) {
        assert!(x.len() == m * k, "x does not hold m * k values");
        // SAFETY: `self` holds the proof, which only run-time detection hands out.
        unsafe { M::prepare(team, x, m, k, out) };
    }

    fn compute(&self, w: &DenseMatrix, x: &[f32], prepared: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        assert!(w.ty() == M::INFO.ty, "{} cannot read {}", M::INFO.name, w.ty().name());
        assert!(rows.start <= rows.end && rows.end <= w.n(), "{rows:?} of {} rows", w.n());
        assert!(x.len() == m * w.k() && y.len() == m * rows.len(), "x does not hold m * k values or y not m * rows");
        if !rows.is_empty() {
            // SAFETY: as above.
            unsafe { M::multiply(w, x, prepared, m, rows, y) };
        }
    }

    fn compute_rows(&self, w: &DenseMatrix, x: &[f32], rows: &[u32], y: &mut [f32]) {
        assert!(M::INFO.activations == Activations::F32, "{} does not take floats", M::INFO.name);
        assert!(w.ty() == M::INFO.ty, "{} cannot read {}", M::INFO.name, w.ty().name());
        assert!(rows.iter().all(|&row| (row as usize) < w.n()), "a row of {}", w.n());
        assert!(x.len() == w.k() && y.len() == rows.len(), "x does not hold k values or y not one of each row");
        // SAFETY: as above.
        unsafe { M::multiply_rows(w, x, rows, y) };
    }
}
