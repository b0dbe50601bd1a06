//! Tests of chat templates: the demo model's reference cases, and the limits.

use serde_json::json;

use super::*;

const QWEN: &str = include_str!("../../testkit/fixtures/qwen2.5-coder-0.5b/chat_template.jinja");
const CASES: &str = include_str!("../../testkit/fixtures/qwen2.5-coder-0.5b/chat_template.json");
const GENERATION: &str = include_str!("../../testkit/fixtures/qwen2.5-coder-0.5b/generation.json");

fn render(template: &str, messages: &Json, tools: Option<&Json>) -> Result<String, TextError> {
    render_with(template, messages, tools, &Map::new())
}

fn render_with(
    template: &str,
    messages: &Json,
    tools: Option<&Json>,
    kwargs: &Map<String, Json>,
) -> Result<String, TextError> {
    let template = ChatTemplate::new(template)?;
    template.render(&ChatPrompt {
        messages,
        tools,
        add_generation_prompt: true,
        kwargs,
        bos_token: None,
        eos_token: Some("</s>"),
    })
}

#[test]
fn the_demo_model_renders_as_in_the_reference() {
    for text in [CASES, GENERATION] {
        let reference: Json = serde_json::from_str(text).unwrap();
        let cases = reference["cases"].as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let tools = case.get("tools").filter(|tools| !tools.is_null());
            let rendered = render(QWEN, &case["messages"], tools).unwrap();
            assert_eq!(rendered, case["rendered"].as_str().unwrap());
        }
    }
}

#[test]
fn python_is_imitated() {
    let messages =
        json!([{"role": "user", "content": " Hi ", "n": 1.0, "flag": true, "none": null}]);
    let cases = [
        ("{{ messages[0].content.strip().upper() }}", "HI"),
        ("{{ messages[0].n }} {{ messages[0].flag }} {{ messages[0].none }}", "1.0 True None"),
        (
            "{{ messages[0] | tojson }}",
            r#"{"role": "user", "content": " Hi ", "n": 1.0, "flag": true, "none": null}"#,
        ),
        ("{{ [1, 'é'] | tojson(ensure_ascii=true, separators=(',', ':')) }}", r#"[1,"\u00e9"]"#),
        ("{{ {'a': 1} | tojson(indent=2) }}", "{\n  \"a\": 1\n}"),
        (
            "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
            "13",
        ),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1"),
        ("{% if strftime_now is defined %}clock{% else %}fixed{% endif %}", "fixed"),
        ("{% if true %}\n    x\n    {% endif %}\ny\n", "    x\ny"),
        ("{% if bos_token is defined %}bos{% endif %}{{ eos_token }}", "</s>"),
        ("<b>{{ '<&>' }}", "<b><&>"),
        ("{{ messages[0].missing }}|", "|"),
    ];
    for (template, expected) in cases {
        assert_eq!(render(template, &messages, None).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn extra_variables_reach_the_template_but_replace_nothing() {
    let kwargs = json!({"date": "today", "messages": "stolen"});
    let messages = json!([{"role": "user"}]);
    let rendered = render_with(
        "{{ date }} {{ messages[0].role }}",
        &messages,
        None,
        kwargs.as_object().unwrap(),
    );
    assert_eq!(rendered.as_deref(), Ok("today user"));
}

#[test]
fn failures_say_what_is_wrong() {
    let none = json!([]);
    let raised = render("{{ raise_exception('roles must alternate') }}", &none, None);
    assert_eq!(raised, Err(TextError::Raised("roles must alternate".to_owned())));
    let clock = render("{{ strftime_now('%Y') }}", &none, None).unwrap_err().to_string();
    assert!(clock.contains("strftime_now") && clock.contains("line 1"), "{clock}");
    let syntax = ChatTemplate::new("a\n{% if %}").err().unwrap().to_string();
    assert!(syntax.contains("line 2"), "{syntax}");
    let undefined = render("{{ undefined_name | tojson }}", &none, None).unwrap_err().to_string();
    assert!(undefined.contains("serializable"), "{undefined}");
    assert!(matches!(render("{% include 'x' %}", &none, None), Err(TextError::Render(_))));
}

#[test]
fn work_and_output_are_bounded() {
    let none = json!([]);
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(endless, &none, None),
        Err(TextError::TemplateLimit { unit: "instructions", .. })
    ));
    let long = "{% for a in range(10000) %}{{ 'x' * 10000 }}{% endfor %}";
    assert!(matches!(
        render(long, &none, None),
        Err(TextError::TemplateLimit { unit: "bytes of text", .. })
    ));
    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep, &none, None), Err(TextError::Render(_))));
    assert!(ChatTemplate::new(&"x".repeat(MAX_SOURCE_BYTES + 1)).is_err());
}
