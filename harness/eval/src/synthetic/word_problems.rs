//! Word problems of one to three calculations. Numbers are small (no result above 99, factors and divisors up to 9), so that a
//! model of a few million weights can learn the arithmetic.

use super::{Drawn, Person, Random, WordProblem, capital};

const THINGS: [&str; 20] = [
    "apples", "pears", "eggs", "nuts", "cookies", "books", "pens", "stamps", "coins", "shells", "buttons", "beads",
    "cards", "balls", "stones", "plums", "cakes", "candles", "roses", "keys",
];
const HOLDERS: [&str; 8] = ["box", "basket", "bag", "jar", "drawer", "crate", "tin", "bowl"];
/// What things are sold or packed in.
const PACKS: [&str; 6] = ["boxes", "bags", "packs", "jars", "baskets", "trays"];
/// A distance or amount per day, hour or trip: verb, unit.
const RATES: [(&str, &str); 5] =
    [("walks", "miles"), ("reads", "pages"), ("runs", "laps"), ("earns", "dollars"), ("drinks", "cups")];
const TIMES: [(&str, &str); 3] = [("day", "days"), ("hour", "hours"), ("week", "weeks")];

/// A calculation of an answer: `{lead} <<a+b=c>>c {unit}.`
struct Step {
    lead: String,
    a: u32,
    op: char,
    b: u32,
    unit: String,
}

impl Step {
    fn new(lead: impl Into<String>, a: u32, op: char, b: u32, unit: impl Into<String>) -> Self {
        Self { lead: lead.into(), a, op, b, unit: unit.into() }
    }

    fn result(&self) -> u32 {
        match self.op {
            '+' => self.a + self.b,
            '-' => self.a - self.b,
            '*' => self.a * self.b,
            _ => self.a / self.b,
        }
    }
}

/// A question and its steps. What is asked for is the result of the last one.
type Problem = (String, Vec<Step>);

/// A name, and how it makes a problem.
type Template = (&'static str, fn(&mut Random) -> Problem);

/// Half of the table has one step, a third two, the others three.
const TEMPLATES: &[Template] = &[
    ("gift", gift),
    ("two places", two_places),
    ("rate sum", rate_sum),
    ("give away", give_away),
    ("take out", take_out),
    ("how many more", how_many_more),
    ("packs", packs),
    ("price", price),
    ("rate", rate),
    ("share", share),
    ("pack up", pack_up),
    ("gift and loss", gift_and_loss),
    ("packs and more", packs_and_more),
    ("packs and fewer", packs_and_fewer),
    ("change", change),
    ("take and share", take_and_share),
    ("join and share", join_and_share),
    ("two packs", two_packs),
    ("three people", three_people),
    ("sell the rest", sell_the_rest),
];
/// Those of one step come first.
const ONE_STEP: usize = 11;

/// Draws a problem; three of five have one step.
pub fn draw(random: &mut Random) -> Drawn<WordProblem> {
    let one_step = random.number(1, 5) <= 3;
    let (name, make) = random.pick(if one_step { &TEMPLATES[..ONE_STEP] } else { &TEMPLATES[ONE_STEP..] });
    let (question, steps) = make(random);
    let mut answer = String::new();
    let mut instance = name.to_owned();
    for step in &steps {
        let Step { lead, a, op, b, unit } = step;
        let c = step.result();
        answer += &format!("{lead} <<{a}{op}{b}={c}>>{c} {unit}.\n");
        instance += &format!(" {a}{op}{b}");
    }
    answer += &format!("#### {}", steps.last().map_or(0, Step::result));
    Drawn { instance, item: WordProblem { question, answer, steps: steps.len() } }
}

/// `a + b` below 100.
fn sum(random: &mut Random) -> (u32, u32) {
    let c = random.number(5, 99);
    let a = random.number(2, c - 2);
    (a, c - a)
}

/// `a * b` below 100.
fn product(random: &mut Random) -> (u32, u32) {
    (random.number(2, 9), random.number(2, 9))
}

fn thing(random: &mut Random) -> &'static str {
    random.pick(&THINGS)
}

fn has(person: Person) -> String {
    format!("{} has", person.name)
}

fn gift(random: &mut Random) -> Problem {
    let ((one, other), things, (a, b)) = (random.people(), thing(random), sum(random));
    let question = format!(
        "{} has {a} {things}. {} gives {} {b} more. How many {things} does {} have now?",
        one.name, other.name, one.him, one.name
    );
    (question, vec![Step::new(has(one), a, '+', b, things)])
}

fn two_places(random: &mut Random) -> Problem {
    let ((one, other), things, (a, b)) = (random.two(&HOLDERS), thing(random), sum(random));
    let question = format!(
        "There are {a} {things} in the {one} and {b} {things} in the {other}. How many {things} are there in all?"
    );
    (question, vec![Step::new("There are", a, '+', b, things)])
}

fn rate_sum(random: &mut Random) -> Problem {
    let (person, (verb, unit), (a, b)) = (random.person(), random.pick(&RATES), sum(random));
    let question = format!(
        "{} {verb} {a} {unit} on Monday and {b} {unit} on Friday. How many {unit} is that together?",
        person.name
    );
    (question, vec![Step::new("Together that is", a, '+', b, unit)])
}

fn give_away(random: &mut Random) -> Problem {
    let ((one, other), things, (b, c)) = (random.people(), thing(random), sum(random));
    let a = b + c;
    let question =
        format!("{} has {a} {things} and gives {b} to {}. How many {things} are left?", one.name, other.name);
    (question, vec![Step::new("There are", a, '-', b, format!("{things} left"))])
}

fn take_out(random: &mut Random) -> Problem {
    let (person, holder, things, (b, c)) = (random.person(), random.pick(&HOLDERS), thing(random), sum(random));
    let a = b + c;
    let question = format!(
        "A {holder} holds {a} {things}. {} takes {b} of them out. How many {things} are still in the {holder}?",
        person.name
    );
    (question, vec![Step::new(format!("The {holder} still holds"), a, '-', b, things)])
}

fn how_many_more(random: &mut Random) -> Problem {
    let ((one, other), things, (b, c)) = (random.people(), thing(random), sum(random));
    let a = b + c;
    let question = format!(
        "{} has {a} {things} and {} has {b} {things}. How many more {things} does {} have?",
        one.name, other.name, one.name
    );
    (question, vec![Step::new(has(one), a, '-', b, format!("more {things}"))])
}

fn packs(random: &mut Random) -> Problem {
    let (person, packs, things, (a, b)) = (random.person(), random.pick(&PACKS), thing(random), product(random));
    let question = format!(
        "{} buys {a} {packs} of {things}. Each one holds {b} {things}. How many {things} does {} buy?",
        person.name, person.he
    );
    (question, vec![Step::new(format!("{} buys", person.name), a, '*', b, things)])
}

fn price(random: &mut Random) -> Problem {
    let (person, things, (a, b)) = (random.person(), thing(random), product(random));
    let question =
        format!("{} buys {a} {things} for {b} dollars each. How many dollars does {} pay?", person.name, person.he);
    (question, vec![Step::new(format!("{} pays", person.name), a, '*', b, "dollars")])
}

fn rate(random: &mut Random) -> Problem {
    let (person, (verb, unit), (time, times)) = (random.person(), random.pick(&RATES), random.pick(&TIMES));
    let (a, b) = product(random);
    let question = format!("{} {verb} {a} {unit} every {time}. How many {unit} is that in {b} {times}?", person.name);
    (question, vec![Step::new("That is", a, '*', b, unit)])
}

fn share(random: &mut Random) -> Problem {
    let (person, things, (a, b)) = (random.person(), thing(random), product(random));
    let c = a * b;
    let question = format!(
        "{} shares {c} {things} equally among {a} friends. How many {things} does each friend get?",
        person.name
    );
    (question, vec![Step::new("Each friend gets", c, '/', a, things)])
}

fn pack_up(random: &mut Random) -> Problem {
    let (person, packs, things, (a, b)) = (random.person(), random.pick(&PACKS), thing(random), product(random));
    let c = a * b;
    let question = format!(
        "{} puts {c} {things} into {packs}, {a} into each one. How many {packs} does {} need?",
        person.name, person.he
    );
    (question, vec![Step::new(format!("{} needs", person.name), c, '/', a, packs)])
}

fn gift_and_loss(random: &mut Random) -> Problem {
    let ((one, other), things, (a, b)) = (random.people(), thing(random), sum(random));
    let c = random.number(2, a + b - 1);
    let question = format!(
        "{} has {a} {things}. {} gives {} {b} more, but {} loses {c}. How many {things} does {} have then?",
        one.name, other.name, one.him, one.he, one.name
    );
    let first = Step::new(format!("First {}", has(one)), a, '+', b, things);
    (question, vec![first, Step::new(format!("Then {} has", one.he), a + b, '-', c, things)])
}

fn packs_and_more(random: &mut Random) -> Problem {
    let (person, packs, things, (a, b)) = (random.person(), random.pick(&PACKS), thing(random), product(random));
    let c = random.number(2, 99 - a * b);
    let question = format!(
        "{} has {c} {things} and buys {a} {packs} with {b} {things} in each. How many {things} does {} have now?",
        person.name, person.he
    );
    let first = Step::new(format!("{} buys", person.name), a, '*', b, things);
    (question, vec![first, Step::new(format!("Now {} has", person.he), a * b, '+', c, things)])
}

fn packs_and_fewer(random: &mut Random) -> Problem {
    let ((one, other), packs, things) = (random.people(), random.pick(&PACKS), thing(random));
    let (a, b) = product(random);
    let c = random.number(1, a * b - 1);
    let question = format!(
        "{} buys {a} {packs} with {b} {things} in each and gives {c} {things} to {}. How many {things} are left?",
        one.name, other.name
    );
    let first = Step::new(format!("{} buys", one.name), a, '*', b, things);
    (question, vec![first, Step::new("There are", a * b, '-', c, format!("{things} left"))])
}

fn change(random: &mut Random) -> Problem {
    let (person, things, (a, b)) = (random.person(), thing(random), product(random));
    let c = random.number(a * b + 1, 99);
    let question = format!(
        "{} buys {a} {things} for {b} dollars each and pays with {c} dollars. How many dollars does {} get back?",
        person.name, person.he
    );
    let first = Step::new(format!("The {things} cost"), a, '*', b, "dollars");
    (question, vec![first, Step::new(format!("{} gets back", person.name), c, '-', a * b, "dollars")])
}

fn take_and_share(random: &mut Random) -> Problem {
    let (person, things, (a, b)) = (random.person(), thing(random), product(random));
    let c = random.number(1, 99 - a * b);
    let total = a * b + c;
    let question = format!(
        "{} has {total} {things}, keeps {c} and shares the others equally among {a} friends. How many {things} does each \
         friend get?",
        person.name
    );
    let first = Step::new(format!("{} shares", person.name), total, '-', c, things);
    (question, vec![first, Step::new("Each friend gets", a * b, '/', a, things)])
}

fn join_and_share(random: &mut Random) -> Problem {
    let ((one, other), things, (a, b)) = (random.people(), thing(random), product(random));
    let c = random.number(1, a * b - 1);
    let d = a * b - c;
    let question = format!(
        "{} has {c} {things} and {} has {d} {things}. They share them equally among {a} friends. How many {things} does \
         each friend get?",
        one.name, other.name
    );
    let first = Step::new("Together they have", c, '+', d, things);
    (question, vec![first, Step::new("Each friend gets", a * b, '/', a, things)])
}

fn two_packs(random: &mut Random) -> Problem {
    let (person, packs, (things, others)) = (random.person(), random.pick(&PACKS), random.two(&THINGS));
    let (a, b, (c, d)) = loop {
        let ((a, b), (c, d)) = (product(random), product(random));
        if a * b + c * d < 100 {
            break (a, b, (c, d));
        }
    };
    let question = format!(
        "{} buys {a} {packs} with {b} {things} in each and {c} {packs} with {d} {others} in each. How many things does {} \
         buy in all?",
        person.name, person.he
    );
    let name = person.name;
    let first = Step::new(format!("{name} buys"), a, '*', b, things);
    let second = Step::new(format!("{name} buys"), c, '*', d, others);
    (question, vec![first, second, Step::new("In all that is", a * b, '+', c * d, "things")])
}

fn three_people(random: &mut Random) -> Problem {
    let ((one, other), things) = (random.people(), thing(random));
    let (a, b) = (random.number(2, 30), random.number(2, 15));
    let c = random.number(1, a + b - 1);
    let question = format!(
        "{} has {a} {things}. {} has {b} more than {}. {} gives {c} of {} {things} away. How many {things} do they have \
         together?",
        one.name, other.name, one.name, other.name, other.his
    );
    let first = Step::new(has(other), a, '+', b, things);
    let second = Step::new(format!("Then {} has", other.he), a + b, '-', c, things);
    (question, vec![first, second, Step::new("Together they have", a, '+', a + b - c, things)])
}

fn sell_the_rest(random: &mut Random) -> Problem {
    let (person, things) = (random.person(), thing(random));
    let (rest, b) = product(random);
    let (gone, lost) = (random.number(1, 40), random.number(1, 40));
    let start = rest + gone + lost;
    let question = format!(
        "{} has {start} {things}. {} gives away {gone} and loses {lost}, then sells the rest for {b} dollars each. How \
         many dollars does {} get?",
        person.name,
        capital(person.he),
        person.he
    );
    let first = Step::new(format!("First {} has", person.he), start, '-', gone, things);
    let second = Step::new(format!("Then {} has", person.he), start - gone, '-', lost, things);
    (question, vec![first, second, Step::new(format!("{} gets", person.name), rest, '*', b, "dollars")])
}
