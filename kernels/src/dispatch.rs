//! Which kernel multiplies which matrix: one for a few tokens (decode), one for many (prefill), by shape.
//!
//! This module only holds the choice; it is measured where files and clocks live, in the program (`kernels bench`, `--kernel auto`).

use std::collections::BTreeMap;

use crate::dense::Activations;
use crate::kernel::TernaryKernel;
use crate::registry::{self, LookupError};

/// From this many tokens on the second kernel of `a+b` is used, unless a measurement says better: where blocked kernels start to
/// pay for their unpacking on every CPU tried.
pub const PREFILL_FROM: usize = 8;

/// The kernels of one matrix.
#[derive(Clone, Copy)]
pub struct Pair {
    /// Below `prefill_from` tokens.
    pub decode: &'static dyn TernaryKernel,
    /// From there on.
    pub prefill: &'static dyn TernaryKernel,
    /// Tokens.
    pub prefill_from: usize,
}

impl Pair {
    /// The kernel for a batch of `m` tokens.
    pub fn at(&self, m: usize) -> &'static dyn TernaryKernel {
        if m < self.prefill_from { self.decode } else { self.prefill }
    }

    /// `a`, or `a+b` where prefill has a kernel of its own.
    pub fn name(&self) -> String {
        let (a, b) = (self.decode.info().name, self.prefill.info().name);
        if a == b { a.to_owned() } else { format!("{a}+{b}") }
    }

    /// Whether one packed copy serves both: kernels of one layout pack to the same bytes.
    pub fn shares_layout(&self) -> bool {
        self.decode.info().layout == self.prefill.info().layout
    }
}

impl From<&'static dyn TernaryKernel> for Pair {
    fn from(kernel: &'static dyn TernaryKernel) -> Self {
        Self { decode: kernel, prefill: kernel, prefill_from: PREFILL_FROM }
    }
}

/// The kernels of a model's matrices.
#[derive(Clone)]
pub struct Dispatch {
    /// For every shape that is not listed.
    pub default: Pair,
    /// By `(n, k)`.
    pub by_shape: BTreeMap<(usize, usize), Pair>,
    /// For dense matrices: the fastest kernel of the type that takes its input so.
    pub activations: Activations,
}

impl Dispatch {
    /// Parses `kernel` or `decode-kernel+prefill-kernel`; `auto` gives [`registry::default_kernel`].
    ///
    /// # Errors
    /// When a name is unknown, or its kernel cannot run here.
    pub fn parse(name: &str) -> Result<Self, LookupError> {
        let (decode, prefill) = name.split_once('+').unwrap_or((name, name));
        let pair =
            Pair { decode: registry::find(decode)?, prefill: registry::find(prefill)?, prefill_from: PREFILL_FROM };
        Ok(pair.into())
    }

    /// The kernels of an `n x k` matrix.
    pub fn of(&self, n: usize, k: usize) -> Pair {
        self.by_shape.get(&(n, k)).copied().unwrap_or(self.default)
    }
}

impl From<Pair> for Dispatch {
    fn from(default: Pair) -> Self {
        Self { default, by_shape: BTreeMap::new(), activations: Activations::default() }
    }
}

impl From<&'static dyn TernaryKernel> for Dispatch {
    fn from(kernel: &'static dyn TernaryKernel) -> Self {
        Pair::from(kernel).into()
    }
}
