"""Diagnosis of skin lesions together with how much annotators agree on their border (IMA++, ISIC, PAD-UFES-20)."""
