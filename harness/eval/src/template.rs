//! Jinja templates over an item's fields, with the settings of lm-evaluation-harness (`lm_eval/utils.py`): nothing is
//! escaped, trailing newlines stay, an undefined name is an error.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};

use crate::dataset::Record;

/// Renders templates and evaluates expressions.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
}

impl Default for Templates {
    fn default() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Building fails for clashing delimiters only, and none is set.
        environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap_or_default());
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        Self { environment }
    }
}

impl Templates {
    /// The text that `template` gives for `record`.
    pub fn render(&self, template: &str, record: &Record) -> Result<String, String> {
        self.environment.render_str(template, Serde(record)).map_err(|error| describe(template, &error))
    }

    /// The list of strings that `expression` gives for `record`.
    pub fn strings(&self, expression: &str, record: &Record) -> Result<Vec<String>, String> {
        let value = self.evaluate(expression, record)?;
        let items = value.try_iter().map_err(|error| describe(expression, &error))?;
        items
            .map(|item| match item.as_str() {
                Some(text) => Ok(text.to_owned()),
                None => Err(format!("'{expression}' must give strings, one is {item}")),
            })
            .collect()
    }

    /// The index that `expression` gives for `record`: a number, or a string of digits as some data sets have.
    pub fn index(&self, expression: &str, record: &Record) -> Result<usize, String> {
        let value = self.evaluate(expression, record)?;
        let index = value.as_usize().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
        index.ok_or_else(|| format!("'{expression}' must give the number of a choice, but gives {value}"))
    }

    fn evaluate(&self, expression: &str, record: &Record) -> Result<Value, String> {
        let compiled = self.environment.compile_expression(expression).map_err(|error| describe(expression, &error))?;
        compiled.eval(Serde(record)).map_err(|error| describe(expression, &error))
    }

    /// Whether a template can be parsed.
    pub fn check_template(template: &str) -> Result<(), String> {
        Self::default().environment.template_from_str(template).map(drop).map_err(|error| describe(template, &error))
    }

    /// Whether an expression can be parsed.
    pub fn check_expression(expression: &str) -> Result<(), String> {
        Self::default()
            .environment
            .compile_expression(expression)
            .map(drop)
            .map_err(|error| describe(expression, &error))
    }
}

fn describe(template: &str, error: &minijinja::Error) -> String {
    format!("template {template:?}: {}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> Record {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn text_is_verbatim() {
        let templates = Templates::default();
        let record = record(r#"{"a": " <b> & {{ c }}\n ", "n": 7}"#);
        assert_eq!(templates.render("x: {{ a }}\n{{ n }}\n", &record).unwrap(), "x:  <b> & {{ c }}\n \n7\n");
    }

    #[test]
    fn expressions_give_choices_and_gold() {
        let templates = Templates::default();
        let record = record(r#"{"a": "x ", "b": "y", "list": ["p", "q", 3], "n": 1, "digit": "1", "minus": -1}"#);
        assert_eq!(templates.strings("[a, b]", &record).unwrap(), ["x ", "y"]);
        assert_eq!(templates.strings("list[:2]", &record).unwrap(), ["p", "q"]);
        assert!(templates.strings("list", &record).unwrap_err().contains("one is 3"));
        assert_eq!(templates.index("n", &record), Ok(1));
        assert_eq!(templates.index("digit", &record), Ok(1));
        assert!(templates.index("minus", &record).unwrap_err().contains("-1"));
        assert_eq!(templates.render("{{ a.strip() }}", &record).unwrap(), "x");
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let error = Templates::default().render("{{ goal }}", &record("{}")).unwrap_err();
        assert!(error.contains("{{ goal }}"), "{error}");
    }
}
