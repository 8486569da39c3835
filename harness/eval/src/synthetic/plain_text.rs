//! Plain text: short stories whose later sentences follow from the first ones, and rows of numbers and sums.

use super::{Drawn, Random, capital};

const PLACES: [&str; 10] =
    ["river", "market", "harbor", "forest", "mill", "school", "station", "garden", "bridge", "lake"];
const HOMES: [&str; 6] = ["house", "hut", "farm", "room", "cabin", "tower"];
const WEATHERS: [(&str, &str); 5] = [
    ("it rained", "an umbrella"),
    ("it snowed", "a warm coat"),
    ("the sun shone", "a straw hat"),
    ("the wind blew", "a scarf"),
    ("it was dark", "a lantern"),
];
const ANIMALS: [(&str, &str); 8] = [
    ("dog", "barks"),
    ("cat", "purrs"),
    ("horse", "neighs"),
    ("duck", "quacks"),
    ("cow", "moos"),
    ("owl", "hoots"),
    ("frog", "croaks"),
    ("sheep", "bleats"),
];
const COLORS: [&str; 8] = ["red", "blue", "green", "white", "black", "brown", "gray", "yellow"];
const FOODS: [&str; 8] = ["bread", "cheese", "soup", "plums", "honey", "fish", "nuts", "pears"];
const TRADES: [(&str, &str); 6] = [
    ("baker", "bakes bread"),
    ("miller", "grinds grain"),
    ("smith", "bends iron"),
    ("tailor", "sews coats"),
    ("fisher", "mends nets"),
    ("carpenter", "saws boards"),
];

/// Draws a paragraph. Its text is its own instance: nothing of it decides an answer.
pub fn draw(random: &mut Random) -> Drawn<String> {
    let text = match random.number(0, 5) {
        0 => walk(random),
        1 => animal(random),
        2 => trade(random),
        3 => counting(random),
        _ => sums(random),
    };
    Drawn { instance: text.clone(), item: text }
}

fn walk(random: &mut Random) -> String {
    let (person, place, home, (weather, thing), food) =
        (random.person(), random.pick(&PLACES), random.pick(&HOMES), random.pick(&WEATHERS), random.pick(&FOODS));
    let (name, he, his) = (person.name, person.he, person.his);
    format!(
        "{name} lives in a {} {home} near the {place}. One day {weather}, so {name} took {thing}. On the way to the {place} \
         {he} ate {food}. When {he} came back to the {home}, {he} put {thing} away and said: it is good to have {thing} when \
         {weather}. Then {he} shared {his} {food}.",
        random.pick(&COLORS)
    )
}

fn animal(random: &mut Random) -> String {
    let ((one, other), (animal, sound), color, food) =
        (random.people(), random.pick(&ANIMALS), random.pick(&COLORS), random.pick(&FOODS));
    let n = random.number(2, 9);
    format!(
        "{} has a {color} {animal}. The {animal} {sound} when {} brings {food}. {} comes {n} times a week, and {n} times a \
         week the {color} {animal} {sound}. {} says: that is my {animal}.",
        one.name,
        other.name,
        other.name,
        capital(one.he)
    )
}

fn trade(random: &mut Random) -> String {
    let (person, (trade, work), place, color) =
        (random.person(), random.pick(&TRADES), random.pick(&PLACES), random.pick(&COLORS));
    let (name, he, his) = (person.name, person.he, person.his);
    let (from, hours) = (random.number(5, 9), random.number(2, 8));
    format!(
        "{name} is a {trade}. A {trade} {work}, and so {name} {work} every day. At {from} in the morning {he} opens the \
         {color} door of {his} shop by the {place}. {hours} hours later, at {}, {he} closes the {color} door and goes home.",
        from + hours
    )
}

fn counting(random: &mut Random) -> String {
    let (person, step) = (random.person(), random.number(1, 9));
    let start = random.number(1, 99 - 6 * step);
    let numbers: Vec<String> = (0..7).map(|i| (start + i * step).to_string()).collect();
    format!("{} counts in steps of {step}: {}.", person.name, numbers.join(", "))
}

/// A row of calculations and nothing else, to learn from. Its text is its own instance.
pub fn drill(random: &mut Random) -> Drawn<String> {
    let row: Vec<String> =
        (0..10).map(|_| calculation(random)).map(|(a, op, b, c)| format!("{a}{op}{b}={c}")).collect();
    let text = format!("Drill: {}", row.join(" "));
    Drawn { instance: text.clone(), item: text }
}

/// Calculations in the notation of the word problems.
fn sums(random: &mut Random) -> String {
    let row: Vec<String> =
        (0..6).map(|_| calculation(random)).map(|(a, op, b, c)| format!("<<{a}{op}{b}={c}>>{c}")).collect();
    format!("Sums: {}.", row.join(", "))
}

/// One of the four operations on small numbers, and its result; sums and differences are twice as likely as the others.
fn calculation(random: &mut Random) -> (u32, char, u32, u32) {
    let c = random.number(5, 99);
    let a = random.number(2, c - 2);
    let b = c - a;
    let (f, g) = (random.number(2, 9), random.number(2, 9));
    let p = f * g;
    match random.number(0, 5) {
        0 | 1 => (a, '+', b, c),
        2 | 3 => (c, '-', a, b),
        4 => (f, '*', g, p),
        _ => (p, '/', f, g),
    }
}
