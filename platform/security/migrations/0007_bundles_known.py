from django.db import migrations, models


class Migration(migrations.Migration):
    """Bundles that are there already are opened once: one that an older copy of the database took over by its header
    may tell of an erasure."""

    dependencies = [
        ("security", "0006_longer_names_of_allowances"),
    ]

    operations = [
        migrations.AddField(
            model_name="bundlefile",
            name="known",
            field=models.DateTimeField(
                help_text="Since when this database knows of every erasure that is in it.", null=True
            ),
        ),
    ]
