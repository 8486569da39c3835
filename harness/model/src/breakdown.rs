//! Where the time of forward passes goes.

use std::time::{Duration, Instant};

use ternbench_kernels::Team;

/// A part of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The query, key and value projections, without the making of their input, as in all linear layers.
    Qkv,
    /// The output projection of attention, and adding to the residual.
    O,
    /// The gate and up projections, and the gate.
    GateUp,
    /// The down projection, and adding to the residual.
    Down,
    /// RoPE, the KV cache and attention.
    Attention,
    /// The head.
    Head,
    /// Embedding, norms, quantising; residuals where they are normalised first.
    Other,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 7] = [Self::Qkv, Self::O, Self::GateUp, Self::Down, Self::Attention, Self::Head, Self::Other];
}

/// Time per part, summed over passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breakdown {
    times: [Duration; Part::ALL.len()],
    last: Option<Instant>,
    regions: u64,
    waited: Duration,
}

impl Breakdown {
    /// Time spent in `part`.
    pub fn time(&self, part: Part) -> Duration {
        self.times[part as usize]
    }

    /// Parallel regions, and how long the first thread waited for the others at their ends. That time is part of the parts'.
    pub fn waits(&self) -> (u64, Duration) {
        (self.regions, self.waited)
    }

    /// Books the waits of a pass, which had `team` to itself.
    pub(crate) fn add_waits(&mut self, team: &Team) {
        let (regions, waited) = team.waits();
        self.regions += regions;
        self.waited += waited;
    }

    /// Starts the clock of a pass.
    pub(crate) fn start(&mut self) {
        self.last = Some(Instant::now());
    }

    /// Books the time since the last call for `part`.
    pub(crate) fn end(&mut self, part: Part) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.times[part as usize] += now - last;
        }
    }
}
