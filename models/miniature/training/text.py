"""The teacher's tokenizer and text encoder: the text half of a CLIP model, trained with a vision tower that is then thrown away."""

import json
from pathlib import Path

import torch

from models.miniature.training.data import CAPTIONS, contrastive, flipped, to_tensor, training_pictures, training_sentences
from models.miniature.training.loop import Options, autocast, device_of, fit, log, save_half
from models.miniature.training.teacher import TOKENS, encode

VOCABULARY = 1200  # at most; the captions have fewer pairs to merge
WIDTH, LAYERS, HEADS = 256, 4, 4
VISION_LAYERS, PATCH = 6, 16


def make_tokenizer(texts: list[str], folder: Path):
    """Train CLIP's kind of byte-pair tokenizer on the captions and save it; returns the CLIPTokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip(vocabulary):
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "projection_dim": WIDTH}
    text = {"vocab_size": vocabulary, "num_hidden_layers": LAYERS, "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    vision = {"num_hidden_layers": VISION_LAYERS, "image_size": 128, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=WIDTH))


def train_text(options: Options) -> None:
    """Train tokenizer and text encoder of `out`/teacher contrastively on pictures and captions."""
    from transformers import CLIPTextModel

    device, folder = device_of(options), Path(options.out) / "teacher"
    pictures = training_pictures(options)
    texts = training_sentences(options)
    tokenizer = make_tokenizer(texts, folder / "tokenizer")
    tokens = encode(tokenizer, texts).view(-1, CAPTIONS, TOKENS)
    log(f"text: vocabulary of {len(tokenizer)}")
    torch.manual_seed(1)
    clip = _clip(len(tokenizer)).to(device).train()

    def loss_of_step(step):
        rows = torch.randint(len(pictures), (options.batch,))
        image_BCHW = flipped(to_tensor(pictures[rows.numpy()], device))
        token_BT = tokens[rows, torch.randint(CAPTIONS, (options.batch,))].to(device)
        with autocast(device):
            # no attention mask, as the diffusion pipeline gives none: padding is part of the sentence
            logits_BB = clip(input_ids=token_BT, pixel_values=image_BCHW, attention_mask=torch.ones_like(token_BT)).logits_per_image
        return contrastive(logits_BB.float())

    fit("text", clip, loss_of_step, options)
    encoder = CLIPTextModel(clip.config.text_config)
    state = clip.text_model.state_dict()
    names = encoder.state_dict().keys()  # releases of transformers differ in whether these carry a prefix
    prefix = "text_model." if next(iter(names)).startswith("text_model.") else ""
    encoder.load_state_dict({prefix + name: tensor for name, tensor in state.items() if prefix + name in names})
    save_half(encoder, folder / "text_encoder")
