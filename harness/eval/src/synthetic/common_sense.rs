//! Physical common sense: a goal, a thing that serves it and a thing that does not.
//!
//! What is tested is a goal and a tool that were never seen together, though both were seen with others. Some things are right
//! for one goal and wrong for another; most are only ever one of the two, so this is an easy test.

use super::{Choice, Drawn, Random};

/// A purpose: ways to say it (`{}` is the object), what it is done to, what serves it and what clearly does not.
struct Purpose {
    goals: [&'static str; 3],
    objects: &'static [&'static str],
    right: &'static [&'static str],
    wrong: &'static [&'static str],
}

const PURPOSES: &[Purpose] = &[
    Purpose {
        goals: [
            "To soak up spilled {},",
            "How do I dry a table that is wet with {}?",
            "Someone spilled {} on the floor.",
        ],
        objects: &["water", "milk", "juice", "tea", "soup", "coffee"],
        right: &["a towel", "a sponge", "a paper napkin", "an old shirt", "a cotton rag"],
        wrong: &["a spoon", "a hammer", "a candle", "a rope", "a magnet", "a saw"],
    },
    Purpose {
        goals: ["To cut {} in two,", "How do I make two pieces of {}?", "You want a short piece of {}."],
        objects: &["bread", "cardboard", "cheese", "thick paper", "ribbon", "cloth"],
        right: &["a sharp knife", "scissors", "a blade", "a cutter"],
        wrong: &["a pillow", "a sponge", "a bucket", "a lamp", "a broom", "an umbrella"],
    },
    Purpose {
        goals: ["To drive a nail into {},", "How do I get a nail into {}?", "A nail sticks out of {}."],
        objects: &["a board", "a wall", "a fence", "a door", "a shelf", "a box"],
        right: &["a hammer", "a heavy stone", "a brick", "a mallet"],
        wrong: &["a pillow", "a feather", "a towel", "a balloon", "a paper napkin", "a sponge"],
    },
    Purpose {
        goals: ["To see in a dark {},", "How do I find my way in a dark {}?", "There is no light in the {}."],
        objects: &["cellar", "tent", "cave", "barn", "room", "garage"],
        right: &["a lamp", "a candle", "a torch", "a lantern"],
        wrong: &["a blanket", "a hammer", "a bucket", "a rope", "a spoon", "a magnet"],
    },
    Purpose {
        goals: ["To carry water from the {},", "How do I bring water from the {}?", "You need some water of the {}."],
        objects: &["well", "river", "lake", "pump", "pond", "spring"],
        right: &["a bucket", "a bottle", "a jug", "a pot"],
        wrong: &["a net", "a fork", "scissors", "a pencil", "a hammer", "a comb"],
    },
    Purpose {
        goals: ["To write down {},", "How do I keep a note of {}?", "You must not forget {}."],
        objects: &["a number", "a name", "an address", "a recipe", "a date", "a price"],
        right: &["a pencil", "a pen", "chalk", "a crayon"],
        wrong: &["a spoon", "a pillow", "a bottle", "a candle", "a brick", "a broom"],
    },
    Purpose {
        goals: ["To tie up {},", "How do I hold {} together?", "You want to bundle {}."],
        objects: &["old papers", "branches", "a parcel", "some sticks", "letters", "straw"],
        right: &["a rope", "string", "a ribbon", "a cord"],
        wrong: &["a brick", "a lamp", "a bottle", "a sponge", "a pencil", "ice cubes"],
    },
    Purpose {
        goals: ["To sweep up {},", "How do I clean the floor of {}?", "There is {} on the floor."],
        objects: &["dust", "sand", "crumbs", "dry leaves", "hair", "flour"],
        right: &["a broom", "a hand brush", "a vacuum cleaner"],
        wrong: &["a magnet", "a candle", "a rope", "a bottle", "a pencil", "an umbrella"],
    },
    Purpose {
        goals: ["To pick up {} from the carpet,", "How do I find {} in the grass?", "You dropped {} in the hay."],
        objects: &["steel pins", "iron nails", "needles", "steel screws", "iron filings", "paper clips"],
        right: &["a magnet", "a strong magnet", "a magnet on a string"],
        wrong: &["a balloon", "chalk", "a candle", "a pencil", "a towel", "a bottle"],
    },
    Purpose {
        goals: [
            "To stay dry on the way to the {},",
            "How do I walk to the {} in the rain?",
            "It rains all the way to the {}.",
        ],
        objects: &["school", "market", "station", "shop", "harbor", "bakery"],
        right: &["an umbrella", "a raincoat", "a rain hat"],
        wrong: &["a sponge", "a fork", "a lamp", "a magnet", "a net", "a pencil"],
    },
    Purpose {
        goals: ["To dig a hole in the {},", "How do I make a hole in the {}?", "You bury a seed in the {}."],
        objects: &["garden", "sand", "field", "flower bed", "yard", "beach"],
        right: &["a shovel", "a spade", "a trowel"],
        wrong: &["a feather", "a towel", "a balloon", "a candle", "a pillow", "string"],
    },
    Purpose {
        goals: ["To keep {} cold,", "How do I cool {} down?", "The {} should get cold."],
        objects: &["lemonade", "milk", "juice", "butter", "melon", "salad"],
        right: &["ice cubes", "the fridge", "a bag of snow", "cold water"],
        wrong: &["the oven", "a candle", "a hot stove", "a warm blanket", "a lamp", "a torch"],
    },
    Purpose {
        goals: ["To warm up {},", "How do I heat {}?", "The {} should get hot."],
        objects: &["soup", "porridge", "stew", "tea", "bread rolls", "sauce"],
        right: &["the oven", "a hot stove", "a small fire"],
        wrong: &["ice cubes", "the fridge", "a bag of snow", "a net", "an umbrella", "string"],
    },
    Purpose {
        goals: ["To glue {} together,", "How do I mend {}?", "You broke {}."],
        objects: &["a cup", "a plate", "a toy", "a vase", "a picture frame", "a ruler"],
        right: &["strong glue", "sticky tape", "paste"],
        wrong: &["ice cubes", "a broom", "a spoon", "a lantern", "a bucket", "a feather"],
    },
];

/// Draws an item.
pub fn draw(random: &mut Random) -> Drawn<Choice> {
    let purpose = &PURPOSES[random.number(0, PURPOSES.len() as u32 - 1) as usize];
    let goal = random.pick(&purpose.goals).replace("{}", random.pick(purpose.objects));
    let right = random.pick(purpose.right);
    let wrong = random.pick(purpose.wrong);
    let label = random.number(0, 1) as usize;
    let mut solutions = [right, wrong].map(|thing| format!("use {thing}."));
    if label == 1 {
        solutions.swap(0, 1);
    }
    Drawn { instance: format!("{goal} {right}"), item: Choice { goal, solutions, label } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_thing_is_right_and_wrong_for_a_goal_and_some_are_both_somewhere() {
        let mut both = 0;
        for purpose in PURPOSES {
            assert!(purpose.goals.iter().all(|goal| goal.matches("{}").count() == 1));
            for right in purpose.right {
                assert!(!purpose.wrong.contains(right), "{right}");
                both += usize::from(PURPOSES.iter().any(|other| other.wrong.contains(right)));
            }
        }
        assert!(both >= 20, "{both} right things are wrong elsewhere");
    }
}
