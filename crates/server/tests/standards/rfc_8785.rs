//! RFC 8785, JSON Canonicalization Scheme: its published examples against what `key explain` says is hashed.

use serde_json::Value;

use super::support::{onceward, output_of};

/// The canonical form of a JSON body: what follows the last part of the message that is hashed.
async fn canonical(json: &str) -> String {
    let mut command = onceward();
    command.args(["key", "explain", "--json"]);
    let head = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{json}", json.len());
    let output = output_of(command, request.into()).await;
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["body_form"], "canonical JSON", "{json}");
    let all = {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.decode(told["canonical_base64"].as_str().unwrap()).unwrap()
    };
    let start = all.iter().position(|byte| matches!(byte, b'{' | b'[')).expect("a body");
    let end = all.iter().rposition(|byte| matches!(byte, b'}' | b']')).expect("its end");
    String::from_utf8(all[start..=end].to_vec()).unwrap()
}

/// The sample of section 3.2.2. `NUMBER` stands for the one number of it that Onceward spells with its exact value.
const SAMPLE: &str = r#"{
  "numbers": [NUMBER, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"#;
const SERIALIZED: &str = "{\"literals\":[null,true,false],\"numbers\":[NUMBER,1e+30,4.5,0.002,1e-27],\
                          \"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";

#[tokio::test]
async fn section_3_2_2_primitive_data_types() {
    let with = |text: &str, number: &str| text.replace("NUMBER", number);
    // What has no more digits than its double is as the RFC has it.
    assert_eq!(canonical(&with(SAMPLE, "333333333.3333333")).await, with(SERIALIZED, "333333333.3333333"));
    // The sample's own first number is rounded by the RFC; a rounded amount would be another amount.
    assert_eq!(canonical(&with(SAMPLE, "333333333.33333329")).await, with(SERIALIZED, "3.3333333333333329e+8"));
}

#[tokio::test]
async fn section_3_2_3_sorting_of_object_properties() {
    let sample = r#"{
  "\u20ac": "Euro Sign",
  "\r": "Carriage Return",
  "\ufb33": "Hebrew Letter Dalet With Dagesh",
  "1": "One",
  "\ud83d\ude00": "Emoji: Grinning Face",
  "\u0080": "Control",
  "\u00f6": "Latin Small Letter O With Diaeresis"
}"#;
    let found = canonical(sample).await;
    let values: Vec<&str> = found.split('"').skip(3).step_by(4).collect();
    assert_eq!(
        values,
        [
            "Carriage Return",
            "One",
            "Control",
            "Latin Small Letter O With Diaeresis",
            "Euro Sign",
            "Emoji: Grinning Face",
            "Hebrew Letter Dalet With Dagesh",
        ]
    );
}

#[tokio::test]
async fn section_3_2_4_utf_8_generation() {
    let found = canonical(&SAMPLE.replace("NUMBER", "333333333.3333333")).await;
    let hex: Vec<String> = found.bytes().map(|byte| format!("{byte:02x}")).collect();
    let published = "7b 22 6c 69 74 65 72 61 6c 73 22 3a 5b 6e 75 6c 6c 2c 74 72 75 65 2c 66 61 6c 73 65 5d 2c 22 6e 75 \
                     6d 62 65 72 73 22 3a 5b 33 33 33 33 33 33 33 33 33 2e 33 33 33 33 33 33 33 2c 31 65 2b 33 30 2c 34 \
                     2e 35 2c 30 2e 30 30 32 2c 31 65 2d 32 37 5d 2c 22 73 74 72 69 6e 67 22 3a 22 e2 82 ac 24 5c 75 30 \
                     30 30 66 5c 6e 41 27 42 5c 22 5c 5c 5c 5c 5c 22 2f 22 7d";
    assert_eq!(hex.join(" "), published);
}

/// The table of appendix B, as IEEE 754 bits and text; NaN and Infinity, which JSON cannot say, left out.
const NUMBERS: &[(u64, &str)] = &[
    (0x0000_0000_0000_0000, "0"),
    (0x8000_0000_0000_0000, "0"),
    (0x0000_0000_0000_0001, "5e-324"),
    (0x8000_0000_0000_0001, "-5e-324"),
    (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
    (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
    (0x4340_0000_0000_0000, "9007199254740992"),
    (0xc340_0000_0000_0000, "-9007199254740992"),
    (0x4430_0000_0000_0000, "295147905179352830000"),
    (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
    (0x44b5_2d02_c7e1_4af6, "1e+23"),
    (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
    (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
    (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
    (0x444b_1ae4_d6e2_ef50, "1e+21"),
    (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
    (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
    (0x41b3_de43_5555_5553, "333333333.3333332"),
    (0x41b3_de43_5555_5554, "333333333.33333325"),
    (0x41b3_de43_5555_5555, "333333333.3333333"),
    (0x41b3_de43_5555_5556, "333333333.3333334"),
    (0x41b3_de43_5555_5557, "333333333.33333343"),
    (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
    (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
];

#[tokio::test]
async fn appendix_b_number_serialization_samples() {
    for (bits, text) in NUMBERS {
        assert_eq!(text.parse::<f64>(), Ok(f64::from_bits(*bits)), "{text}");
    }
    // In another spelling of the same value each, so that it is the form that makes the text and not the input.
    let spelled: Vec<String> = NUMBERS
        .iter()
        .map(|(bits, text)| match text.split_once('e') {
            Some((digits, exponent)) => {
                let point = if digits.contains('.') { "" } else { "." };
                format!("{digits}{point}0E{exponent}")
            }
            None if *bits == 1 << 63 => "-0.0".to_owned(),
            None => format!("{text}E+0"),
        })
        .collect();
    let want: Vec<&str> = NUMBERS.iter().map(|(_, text)| *text).collect();
    assert_eq!(canonical(&format!("[{}]", spelled.join(", "))).await, format!("[{}]", want.join(",")));
    // And the published texts are their own canonical form.
    assert_eq!(canonical(&format!("[{}]", want.join(" , "))).await, format!("[{}]", want.join(",")));
}
