//! What is known of the sums behind a speed: exact, within a bound, or not checked because another program made them.

use ternbench_measure::record::{Code, Speed};

/// How a contender's sums relate to the oracle's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sums {
    /// Equal to the oracle's.
    Exact,
    /// Within a derived bound of them.
    Bounded,
    /// Unknown: an opponent's kernel was never compared with the oracle.
    Unchecked,
}

impl Sums {
    const ALL: [Self; 3] = [Self::Exact, Self::Bounded, Self::Unchecked];

    /// Those of ternbench's own code.
    pub fn of_code(code: &Code) -> Self {
        if code.exact { Self::Exact } else { Self::Bounded }
    }

    /// Those of a speed record, whoever made it.
    pub fn of_speed(speed: &Speed) -> Self {
        if speed.opponent.is_some() { Self::Unchecked } else { Self::of_code(&speed.code) }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Bounded => "bounded",
            Self::Unchecked => "not checked",
        }
    }

    /// The one with this name.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|sums| sums.name() == name).unwrap_or(Self::Unchecked)
    }

    /// A kernel's name, marked where its sums are not exact: `llama-bench (not checked)`.
    pub fn mark(self, kernel: &str) -> String {
        match self {
            Self::Exact => kernel.to_owned(),
            Self::Bounded => format!("{kernel} (lossy)"),
            Self::Unchecked => format!("{kernel} (not checked)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use ternbench_measure::record::Opponent;

    use super::*;

    #[test]
    fn an_opponent_is_neither_exact_nor_lossy() {
        for exact in [true, false] {
            let code = Code { exact, ..Code::default() };
            let ours = Speed { code: code.clone(), ..Speed::default() };
            assert_eq!(Sums::of_speed(&ours), Sums::of_code(&code));
            let theirs = Speed { opponent: Some(Opponent::default()), ..ours };
            assert_eq!(Sums::of_speed(&theirs).mark("llama-bench"), "llama-bench (not checked)");
        }
        assert!(Sums::ALL.into_iter().all(|sums| Sums::named(sums.name()) == sums));
    }
}
