"""Video Quality and Reward Hacking in the real host: numbers, reasons, gates."""

import json

import pytest

pytestmark = pytest.mark.host


def test_quality_and_suspicions_of_a_still_picture_are_numbers_and_sentences(host):
    prompt = {
        "clips": {
            "class_type": "IPRO_TinyWorldClips",
            "inputs": {"people": "tuning", "count": 24, "seed": 3},
        },
        "shown": {
            "class_type": "IPRO_ShowClip",
            "inputs": {"clips": ["clips", 0], "index": 0, "max_frames": 0},
        },
        "still": {"class_type": "RepeatImageBatch", "inputs": {"image": ["shown", 1], "amount": 9}},
        "faces": {"class_type": "IPRO_LoadFaceModels", "inputs": {"pack": "tiny world (embedded)"}},
        "quality": {
            "class_type": "IPRO_VideoQuality",
            "inputs": {"video": ["still", 0], "fps": 8, "quality": "tf, sc"},
        },
        "hacking": {
            "class_type": "IPRO_RewardHacking",
            "inputs": {"video": ["still", 0], "reference": ["shown", 1], "face_models": ["faces", 0]}
            | {"real_clips": ["clips", 0], "fps": 8},
        },
    }
    facts = host.get("/object_info")
    for node in prompt.values():  # what this graph leaves out is as the page would send it
        declared = facts[node["class_type"]]["input"]
        for name, (kind, *about) in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            if name not in node["inputs"] and about and "default" in about[0]:
                node["inputs"][name] = about[0]["default"]
            assert name in node["inputs"] or name in declared.get("optional", {}), (node, name, kind)
    outputs = host.execute(prompt)
    assert json.loads(outputs["quality"]["text"][0]) == {"tf": 1.0}
    (reason,) = outputs["quality"]["ipro_warning"]
    assert reason.startswith("sc: SC needs DINO")
    assert any(line.startswith("Suspected pasted face") for line in outputs["hacking"]["ipro_warning"])
    assert json.loads(outputs["hacking"]["text"][0])["stiffness"] > 2
